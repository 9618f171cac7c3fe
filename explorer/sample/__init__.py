"""Many schedules of one run: strategies, policies, and what was seen."""
