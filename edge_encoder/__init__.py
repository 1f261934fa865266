"""AEIC, the edge: a photograph in, one or two kilobytes safely kept, then sent. Never imports torch."""
