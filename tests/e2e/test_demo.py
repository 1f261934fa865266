"""``make demo`` with the tiny bundle and two pictures: the table, the report, the montage, the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from tests.support.roots import ROOT

KEYS = {"name", "width", "height", "bytes", "bpp", "encode_ms", "decode_ms", "end_to_end_ms", "psnr_db"}


def demo(tiny_bundle: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "aeic_tools.demo", "-m", str(tiny_bundle), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_report_and_montage(tiny_bundle: Path, tmp_path: Path) -> None:
    process = demo(tiny_bundle, "--out", tmp_path, "examples/owl.jpg", "examples/chelsea.png")
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, out + errors
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["all_ok"] is True
    assert [frame["name"] for frame in report["frames"]] == ["owl.jpg", "chelsea.png"]
    for frame in report["frames"]:
        assert set(frame) >= KEYS
        assert frame["psnr_db"] > 10 and 0 < frame["encode_ms"] < frame["end_to_end_ms"] and frame["decode_ms"] > 0
    assert "owl.jpg" in out and "451x300" in out
    with Image.open(tmp_path / "montage.png") as montage:
        assert montage.width > 800


def test_a_picture_that_fails_is_named_and_is_no_success(tiny_bundle: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    process = demo(tiny_bundle, "--out", tmp_path / "out", bad, "examples/chelsea.png")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "FAILED" in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["all_ok"] is False and report["failures"][0]["name"] == "bad.jpg" and len(report["frames"]) == 1


def test_keep_runs_until_sigterm(tiny_bundle: Path) -> None:
    process = demo(tiny_bundle, "--keep")
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("edge   http://127.0.0.1:"), first
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
