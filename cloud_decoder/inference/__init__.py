"""From bitstreams to pixels: the decoder, its backends, and the pool of loaded models."""
