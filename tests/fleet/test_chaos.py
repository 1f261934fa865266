"""The fleet under fire, in its short form: no Ray, some hundred frames. ``make test-fleet`` has the long ones."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.cloud.postgres import missing
from tests.support.roots import ROOT

pytest.importorskip("obstore", reason="obstore is not installed (extra fleet)")


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--rolling"]], ids=["killed", "rolling"])
def test_none_lost_none_twice_none_stuck(how: list[str]) -> None:
    if why_not := missing():
        pytest.skip(why_not)
    command = [sys.executable, "-m", "tests.fleet.chaos", "--frames", "300", "--workers", "2", "--per-second", "20"]
    done = subprocess.run([*command, *how], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["lost"] == result["duplicated"] == 0
    # So that there was trouble at all: after a kill comes a start, which on two busy cores takes seconds.
    assert sum(result["events"].values()) >= 2
