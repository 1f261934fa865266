"""The pauses between attempts."""

from __future__ import annotations

import random

from aeic_service.backoff import Backoff


def test_backoff_grows_with_jitter_up_to_its_limit() -> None:
    backoff = Backoff(0.5, 60.0, random.Random(1))
    pauses = [backoff.pause() for _ in range(50)]
    assert 0.4 <= pauses[0] <= 0.6
    assert all(48 <= pause <= 72 for pause in pauses[-30:])
    assert len({round(pause, 6) for pause in pauses[-30:]}) > 25
    backoff.reset()
    assert backoff.pause() <= 0.6
