"""Plots of results, training runs and ablations."""
