"""``aeic bench fleet`` and ``aeic simulate fleet``: several workers on one store, measured and simulated."""
