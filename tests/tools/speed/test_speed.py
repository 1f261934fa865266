"""``aeic bench speed``: a table, and JSON in the last line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aeic_tools.files import UsageError
from aeic_tools.speed import by_size, single


def test_table_and_json(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (80, 64), "teal").save(tmp_path / "teal.png")
    assert single.run(tmp_path, reps=1, bundle=tiny_bundle, threads=1) == 0
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)["results"][0]
    assert result["name"] == "teal.png" and result["encode_ms"] > 0 and result["decode_ms"] > 0
    assert table[-1].startswith("teal.png")


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures"):
        single.run(tmp_path, reps=1, bundle=None, threads=1)


def test_by_size(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, (width, height) in zip(paths, [(80, 64), (50, 90)], strict=True):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    assert by_size.run(paths, "96x64,200x150", reps=1, bundle=tiny_bundle, threads=1) == 0
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    first, second = found["results"]
    assert (second["width"], second["height"]) == (200, 150) and first["encode_ratio"] == 1.0
    assert found["decode_ratio"] == max(1.0, second["decode_ratio"])
    assert 20 < second["encode_peak_mb"] < 2000 and 20 < second["decode_peak_mb"] < 2000
    assert table[-1].split()[0] == "200x150"


def test_a_composed_picture_is_filled_with_the_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "teal").save(tmp_path / "a.png")
    image = Image.open(io.BytesIO(by_size.compose([tmp_path / "a.png"], (101, 67))))
    assert image.size == (101, 67) and image.getcolors() == [(101 * 67, (0, 128, 128))]


@pytest.mark.parametrize("text", ["12x12", "1280", "1280x", "0x720", "99999x10", "1e3x20"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        by_size.parse_size(text)
