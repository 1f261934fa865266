"""Seconds and multiply-adds: measured on one picture, written as a table and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aeic_train.studies import costs


def test_time_of_children_counts_as_cpu_time() -> None:
    import subprocess
    import sys

    _, wall, processor = costs.timed(lambda: subprocess.run([sys.executable, "-c", "sum(range(3 * 10**6))"]), 1)
    assert wall > 0 and processor > 0.01


def test_costs_of_ours_beside_another(tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), "--codecs", "jpeg=5,nothing=1", "--reps", "1", "-m", str(tiny_bundle)]
    costs.main([*arguments, "--out", str(tmp_path)])
    said = capsys.readouterr()
    assert "left out" in said.err
    line = json.loads(said.out.splitlines()[-1])
    assert line["size"] == [96, 64] and len(line["seconds"]) == 2 and "jpeg" in line["seconds"]
    assert all(second > 0 for pair in line["seconds"].values() for second in pair)
    text = (tmp_path / "costs.md").read_text()
    assert "| jpeg | 5 |" in text and "| PerCo | >1000 | 2666.47 | >1000 | >10^4 |" in text
    known = json.loads((tmp_path / "costs.json").read_text())["complexity"]
    assert known["AEIC-SE"][1] == pytest.approx(46.02, rel=0.003)  # as published
    (tmp_path / "costs.md").unlink()
    costs.main(["--draw", "--out", str(tmp_path)])
    assert (tmp_path / "costs.md").read_text() == text and (tmp_path / "costs.svg").stat().st_size > 5000
