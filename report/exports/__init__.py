"""A run in the formats of other tools' viewers: one file for each."""
