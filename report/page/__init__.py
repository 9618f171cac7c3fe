"""A page for a run: one file that opens in any browser, with no network."""
