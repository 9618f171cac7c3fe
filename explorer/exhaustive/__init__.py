"""Every execution of a small scope: DPOR, the stateful search, and what both rest on."""
