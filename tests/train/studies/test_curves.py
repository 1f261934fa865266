"""bench curves: our results and published ones in one plot, BD-rates against an anchor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aeic_train.studies.curves import main
from tests.support.results import LISTS, documents
from tests.support.roots import ROOT

KODAK = ROOT / "docs" / "results" / "published_kodak.json"


def test_ours_beside_the_published_curves(tmp_path: Path, capsys: Any) -> None:
    ours = tmp_path / "results.json"
    ours.write_text(json.dumps(documents()[:1]))
    main([str(ours), str(KODAK), "--anchor", "StableCodec", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    line = json.loads(said.splitlines()[-1])
    assert line["codecs"][:3] == ["aeic/x", "AEIC-ME", "AEIC-SE"] and "ELIC" in line["codecs"]
    assert line["bd_rates"]["AEIC-ME"]["dists"] == pytest.approx(-26.14, abs=0.05)
    assert line["bd_rates"]["VTM"]["dists"] is None  # no common range of quality
    text = (tmp_path / "out" / "curves.md").read_text()
    assert "## BD-rate against StableCodec" in text and "| aeic/x | " in text
    assert {path.name for path in (tmp_path / "out" / "curves").iterdir()} >= {
        "aeic-x.json",
        "DiffEIC.json",
        "VTM.json",
    }
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000


def test_a_set_of_a_file_with_several(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "results.txt"
    path.write_text(LISTS)
    main([str(path), "--set", "kodak", "--name", "Stable", "--out", str(tmp_path / "out")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["codecs"] == ["Stable"]
    for arguments, message in (
        ([], "by --set: CLIC 2020 Test, Kodak"),
        (["--set", "tecnick"], "no results of the set 'tecnick'"),
        (["--set", "kodak", "--anchor", "VTM"], "no curve 'VTM'"),
    ):
        with pytest.raises(SystemExit):
            main([str(path), *arguments, "--out", str(tmp_path / "out")])
        assert message in capsys.readouterr().err
