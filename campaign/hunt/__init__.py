"""Random small programs over everything that there is, each explored."""
