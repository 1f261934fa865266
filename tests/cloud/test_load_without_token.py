"""A short run of ``make test-unauthenticated`` with small pictures, without its limits of time."""

from __future__ import annotations

from pathlib import Path

from aeic.bundle import Bundle
from tests.cloud import load_without_token


def test_clients_without_a_token_stop_neither_service(bundle: Bundle, tmp_path: Path) -> None:
    result = load_without_token.run(bundle, tmp_path, 0.3, ["calls", "frames"], side=512, timed=False)
    assert result["wrong"] == []
    assert set(result["rows"]) == {"calls", "frames", "all"}
    assert set(result["stopping"]) == {"cloud", "edge"}
