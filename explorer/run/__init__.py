"""One run and its verdict: sessions, outcomes, schedules as files, replay."""
