"""Training pictures: photographs and synthetic crops."""
