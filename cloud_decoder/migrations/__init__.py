"""The store's revisions, applied by Alembic. :mod:`cloud_decoder.revisions` says when."""
