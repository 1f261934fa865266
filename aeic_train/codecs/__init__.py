"""Codecs behind one interface: ours, and the baselines it is compared with."""
