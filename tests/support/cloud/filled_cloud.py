"""A store with frames of past days, filled before its cloud starts, so that pages have something to show."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from aeic.bundle import Bundle
from aeic_tools.demo.client import request
from cloud_decoder.store.store import Store
from tests.support.frames import frame_maker, new_frame

DAY = 86400
NOON = (time.time() // DAY - 1) * DAY + DAY / 2
"""Yesterday at noon, UTC: far from midnight, and long enough ago that every source is silent."""


def fill(folder: Path, bundle: Path, sources: Sequence[str], frames_each: int) -> None:
    """Frames two minutes apart for every source, and a last one of the first source that cannot be decoded.

    ``folder`` is the one that ``local_services.cloud`` takes as ``data``; its cloud must not run yet.
    """
    make = frame_maker(Bundle.load(bundle))
    bitstreams = [make(seed) for seed in range(5)]
    (folder / "cloud").mkdir(parents=True)
    store = Store(f"sqlite:///{folder / 'cloud' / 'store.db'}")
    for number in range(frames_each):
        rows = [new_frame(bitstreams[(number + one) % 5], source=name) for one, name in enumerate(sources)]
        store.frames.add(rows, NOON + 120 * number)
    broken = bytearray(bitstreams[0])
    broken[-1] ^= 0xFF
    store.frames.add([new_frame(bytes(broken), source=sources[0])], NOON + 120 * frames_each)
    store.close()


def wait_decoded(http: str) -> None:
    """Until the cloud at ``http`` has no frame left to decode."""
    deadline = time.monotonic() + 120
    while True:
        counted = json.loads(request(f"{http}/v1/status"))["frames"]
        if not counted["received"] + counted["decoding"]:
            return
        assert time.monotonic() < deadline, counted
        time.sleep(0.2)
