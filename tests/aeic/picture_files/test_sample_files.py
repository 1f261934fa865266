"""The command that reads folders of sample files: pictures, refusals and faults are counted apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.aeic.picture_files import sample_files
from tests.support.pictures import gif, picture


def test_pictures_refusals_and_faults_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jpg").write_bytes(picture())
    (tmp_path / "b.gif").write_bytes(gif())
    (tmp_path / "c").write_bytes(b"text")
    monkeypatch.setattr(sys, "argv", ["sample_files", str(tmp_path)])
    assert sample_files.main() == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"files": 3, "picture": 1, "UnsupportedFormat": 1, "Unreadable": 1, "faults": 0}
    monkeypatch.setattr(sample_files, "picture_size", lambda data, max_pixels: (1, 1))
    assert sample_files.main() == 1
    assert "its header says (1, 1), the picture has (96, 64)" in capsys.readouterr().out
