"""Names the extra that brings a missing package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aeic.errors import remedy
from aeic_tools.files import UsageError

_OURS = {"aeic", "edge_encoder", "cloud_decoder", "aeic_nets", "aeic_train", "aeic_tools"}


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Put round the imports of a command: a package that is not there becomes a message naming ``extra``."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise
        raise UsageError(f"{error.name} is not installed: {remedy(extra)}") from error
