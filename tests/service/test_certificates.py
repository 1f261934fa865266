"""When certificate files expire: chains at their first end, authorities at their last, read again after a change."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from aeic_service.certificates import Certificates
from tests.support.certificates import MISSING, authority, certificate

pytestmark = pytest.mark.skipif(MISSING, reason="openssl makes the certificates")

DAY = 86400


def days(found: dict[str, float]) -> dict[str, int]:
    """Whole days from now until each file expires."""
    return {name: round((seconds - time.time()) / DAY) for name, seconds in found.items()}


def test_a_chain_ends_with_its_first_and_authorities_with_their_last(tmp_path: Path) -> None:
    long, short = authority(tmp_path, "long", days=90), authority(tmp_path, "short", days=9)
    both = tmp_path / "both.pem"
    both.write_bytes(long.read_bytes() + short.read_bytes())
    found = Certificates(chains={"cert": both}, authorities={"ca": both, "none": None})
    assert days(found.expiry_seconds()) == {"cert": 9, "ca": 90}


def test_a_renewed_file_is_read_again(tmp_path: Path) -> None:
    authority(tmp_path, "ca", days=90)
    path = certificate(tmp_path, "own", "ca", days=3)
    found = Certificates(chains={"cert": path}, authorities={})
    assert days(found.expiry_seconds()) == {"cert": 3}
    certificate(tmp_path, "new", "ca", days=30).rename(path)
    assert days(found.expiry_seconds()) == {"cert": 30}


def test_an_unreadable_file_is_logged_once_and_hides_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bad.pem").write_text("not a certificate")
    good = authority(tmp_path, "good", days=9)
    found = Certificates(
        chains={"bad": tmp_path / "bad.pem", "gone": tmp_path / "gone.pem", "good": good}, authorities={}
    )
    with caplog.at_level(logging.WARNING):
        assert all(days(found.expiry_seconds()) == {"good": 9} for _ in range(3))
    assert len(caplog.records) == 2
