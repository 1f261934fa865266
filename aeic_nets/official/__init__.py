"""The published checkpoints and streams of AEIC: read, compared with our networks to the number, and counted."""
