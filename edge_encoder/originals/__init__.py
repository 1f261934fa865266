"""Originals that are kept for a while after their frames were made, so that the cloud can ask for more of them."""
