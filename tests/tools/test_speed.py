"""``aeic bench speed``: a table, and JSON in the last line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from aeic_tools import speed
from aeic_tools.files import UsageError


def test_table_and_json(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (80, 64), "teal").save(tmp_path / "teal.png")
    assert speed.run(tmp_path, reps=1, bundle=tiny_bundle, threads=1) == 0
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)["results"][0]
    assert result["name"] == "teal.png" and result["encode_ms"] > 0 and result["decode_ms"] > 0
    assert table[-1].startswith("teal.png")


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures"):
        speed.run(tmp_path, reps=1, bundle=None, threads=1)
