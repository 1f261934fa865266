"""How a picture becomes a spooled frame: now, or later when the box is busy."""
