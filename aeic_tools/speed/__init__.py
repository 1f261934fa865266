"""``aeic bench speed`` and ``aeic bench speed-table``: encode and decode times of single pictures."""
