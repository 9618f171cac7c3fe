"""One file for a group of commands: each takes by name what ``arguments`` parsed, calls, prints."""
