"""Cases, and how they are cut down: the smallest case, the shortest schedule."""
