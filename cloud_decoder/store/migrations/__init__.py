"""The store's revisions, applied by Alembic. :mod:`cloud_decoder.store.migrate` says when."""
