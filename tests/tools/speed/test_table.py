"""The table of speeds: published rows as they are, measured ones beside them, nothing in between made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import aeic
from aeic_tools.speed import table as speed_table
from tests.support.models.tiny_bundle import write_tiny_bundle
from tests.support.roots import ROOT


def test_the_published_rows_are_complete() -> None:
    text = speed_table.table({})
    assert "| RTX 4090D (paper) | AEIC-SE | 14.0 [71.4] | 104.2 [9.6] | 27.9 [35.8] | 836.2 [1.2] |  |" in text
    assert "| GTX 1080 Ti (paper) | AEIC-ME | 60.3 [16.6] |" in text
    assert text.count("OOM") == 4 + 2 + 2 + 2 + 2
    assert len(text.splitlines()) == 4 + 2 * 8


def test_a_bundle_is_measured_and_other_devices_stay(tmp_path: Path, capsys: Any) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    other = {
        "Another CPU": {"tiny 00": {"64x64": {"bytes": 9, "encode_ms": 2.0, "decode_ms": 4.0, "peak_bytes": None}}}
    }
    out = tmp_path / "out"
    out.mkdir()
    (out / "speed.json").write_text(json.dumps(other))
    picture = str(ROOT / "examples" / "owl.jpg")
    command = ["--bundle", str(bundle), "--sizes", "96x64", "--device", "onnx", "--out", str(out), "--reps", "1"]
    speed_table.main([*command, "--picture", picture])
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])["measured"]
    assert measured["Another CPU"] == other["Another CPU"]
    (device,) = set(measured) - {"Another CPU"}
    ((name, rows),) = measured[device].items()
    assert rows["96x64"]["encode_ms"] > 0 and rows["96x64"]["peak_bytes"] > 1e6
    assert rows["96x64"]["versions"] == {"aeic": aeic.__version__}
    text = (out / "speed.md").read_text()
    assert "| Another CPU | tiny 00 |  |  |  |  | 2.0 [500.0] | 4.0 [250.0] |  |  |  |" in text
    assert f"| {device} | {name} |  |  |  |  |  |  | " in text
    speed_table.main(["--draw", "--out", str(out)])
    assert (out / "speed.md").read_text() == text


def test_a_size_that_is_none_is_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        speed_table.main(["--sizes", "768"])
    assert "give WIDTHxHEIGHT" in capsys.readouterr().err


def test_a_row_of_a_gpu_has_the_versions_that_its_speed_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(speed_table, "driver_version", lambda: "580.65.06")
    versions = {"aeic": aeic.__version__, "torch": torch.__version__, "driver": "580.65.06"}
    assert speed_table._versions("cuda:1") == versions
