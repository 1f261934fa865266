"""The store: frames and their jobs in SQLite or PostgreSQL."""
