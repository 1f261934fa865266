"""Replacing the model of a running edge: staging, self-test, trial and rollback."""
