"""What must never happen: one file for a rule or a family, named for it; ``table`` lists all."""
