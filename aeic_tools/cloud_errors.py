"""What the commands that ask a cloud say when it refuses or does not answer."""

from __future__ import annotations

import httpx

from aeic_client import Problem


def words(error: Problem | httpx.TransportError, url: str) -> str:
    """One line for stderr. Where the cloud at ``url`` did not answer, it names the address and the remedy."""
    if isinstance(error, Problem):
        return f"aeic: {error}"
    cause = str(error) or type(error).__name__
    remedy = "start a cloud with `aeic cloud`, or name yours with --url or AEIC_URL"
    return f"aeic: no answer from {url} ({cause}): {remedy}"
