"""Checks and measurements for a GPU. docs/how-to/gpu.md explains them."""
