"""A few hundred of the requests that ``make test-hostile`` sends by the ten thousand."""

from __future__ import annotations

# Here and not first in the middle of the run: beside other threads, Python 3.11's parser can fail on what pytest
# rewrites (python/cpython#106905).
import schemathesis  # noqa: F401

from tests.cloud import hostile


def test_a_hostile_client_gets_nothing_and_breaks_nothing() -> None:
    result = hostile.run(500, seed=1)
    assert result["wrong"] == []
    assert result["requests"] >= 500
