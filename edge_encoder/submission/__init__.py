"""How a picture becomes a spooled frame: encoded at once, or stored and encoded later."""
