"""Checks and measurements for a GPU: see docs/how-to/gpu.md."""
