"""Some hundreds of what ``make test-hostile`` sends by the ten thousand."""

from __future__ import annotations

from tests.cloud import hostile


def test_a_stranger_gets_nothing_and_breaks_nothing() -> None:
    result = hostile.run(500, seed=1)
    assert result["wrong"] == []
    assert result["requests"] >= 500
