"""Tests: one folder for each package, and the tiny bundle that stands in for a model."""
