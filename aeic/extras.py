"""How to install an extra of the package, for errors that name a missing one."""

from __future__ import annotations


def remedy(*extras: str) -> str:
    """The command that installs ``extras``. AEIC is installed from a clone: a package index does not have it."""
    return f'run pip install ".[{",".join(extras)}]" in a clone of the AEIC repository'
