"""The store's revisions, which Alembic applies. :mod:`cloud_decoder.store.migrate` decides when."""
