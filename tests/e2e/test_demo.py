"""``make demo`` with the tiny bundle and two pictures: the table, the report, the montage, the exit code."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from PIL import Image

from aeic_tools.demo.client import request
from tests.support.roots import EXAMPLES, ROOT

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


def test_keep_runs_until_sigterm_and_prints_a_request_that_works(tiny_bundle: Path, tmp_path: Path) -> None:
    process = demo(tiny_bundle, "--keep")
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("edge   http://127.0.0.1:"), first
    lines = [process.stdout.readline() for _ in range(7)]
    owl = (EXAMPLES / "owl.jpg").read_bytes()
    id = json.loads(request(f"{first.split()[1]}/v1/frames?wait=delivered", owl))["id"]
    program, *arguments = shlex.split(lines[-1].replace(" ID ", f" {id} ").replace("out/", f"{tmp_path}/"))
    assert Path(program).name == "aeic" and arguments[0] == "ask"
    asked = [sys.executable, "-m", "aeic_tools.cli", *arguments]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "closer.png") as image:
        assert image.size == (180, 120)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
