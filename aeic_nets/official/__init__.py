"""The published checkpoints and streams of AEIC: reading them, proving that our networks are the same, counting them."""
