"""Going through a run by hand: any delivery of it, the state there, and what else could come."""
