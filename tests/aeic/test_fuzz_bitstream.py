from __future__ import annotations

from tests.aeic.fuzz_bitstream import run


def test_two_seconds_of_fuzzing() -> None:
    result = run(seconds=2, streams=None, seed=1)
    assert result["ok"], result
