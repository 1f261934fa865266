"""The service as a process: what it opens at its start, its upkeep while it runs, and whether it takes requests."""
