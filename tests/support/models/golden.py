"""The golden streams and the refused frames, as their listings in tests/golden describe them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.roots import ROOT

GOLDEN = ROOT / "tests" / "golden"
LISTING = json.loads((GOLDEN / "golden.json").read_text())
REFUSED = json.loads((GOLDEN / "refused" / "refused.json").read_text())

streams = pytest.mark.parametrize("stream", LISTING["streams"], ids=lambda stream: str(stream["name"]))
refused = pytest.mark.parametrize("frame", REFUSED["frames"], ids=lambda frame: str(frame["name"]))


def frame_bytes(frame: dict[str, Any]) -> bytes:
    """The bytes of a refused frame, with those that its listing adds."""
    return (GOLDEN / "refused" / f"{frame['name']}.aeic").read_bytes() + b"\1" * int(frame["fill"])
