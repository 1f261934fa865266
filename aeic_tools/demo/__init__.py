"""``make demo`` and ``make run``: both services on this machine, and a small HTTP client for them."""
