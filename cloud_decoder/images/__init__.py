"""Reconstructed pictures: formats and caches."""
