"""The README's commands for the two services, run as they stand; and its Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from aeic_tools.demo.local_services import Pair
from tests.support.roots import ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="needs curl and bash")
def test_the_curl_examples(pair: Pair, tmp_path: Path) -> None:
    block = README.partition("<!-- tested")[2].partition("```sh\n")[2].partition("```")[0]
    assert block.count("curl") >= 8
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "EDGE": pair.edge.http, "CLOUD": pair.cloud.http}
    script = "set -euo pipefail\n" + block
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"examples", "out"}, "nothing is written beside out/"
    for name, picture_format in (("owl.png", "PNG"), ("again.webp", "WEBP")):
        with Image.open(tmp_path / "out" / name) as image:
            assert (image.size, image.format) == ((768, 512), picture_format)
    assert (tmp_path / "out" / "owl.aeic").read_bytes()[0] == 0xAE


@pytest.mark.parametrize("side", ["edge", "cloud"])
def test_the_reference_lists_every_route(pair: Pair, side: str) -> None:
    base = pair.edge.http if side == "edge" else pair.cloud.http
    with urllib.request.urlopen(f"{base}/openapi.json", timeout=30) as answer:
        paths = set(json.load(answer)["paths"])
    assert "/v1/status" in paths
    text = (
        (ROOT / "docs" / "reference" / f"{side}.md").read_text().partition("## HTTP API")[2].partition("| status |")[0]
    )
    named = set(re.findall(r"`(?:(?:GET|POST) )?(/[^`?]*)[`?]", text))
    assert paths - named == set(), "routes that the reference does not list"


def test_the_command_line_examples(tiny_bundle: Path, tmp_path: Path) -> None:
    """Every `aeic` line of the README that needs no service."""
    section = README.partition("## The command line")[2].partition("```sh\n")[2].partition("```")[0]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    lines = [line for line in section.splitlines() if "bench" not in line]
    script = f'set -euo pipefail\naeic() {{ "{sys.executable}" -m aeic_tools.cli "$@"; }}\n' + "\n".join(lines)
    environment = {**os.environ, "AEIC_BUNDLE": str(tiny_bundle), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"examples", "out"}, "nothing is written beside out/"
    assert (tmp_path / "out" / "owl.png").exists() and (tmp_path / "out" / "coffee.png").exists()
    assert len(list((tmp_path / "out" / "frames").glob("*.aeic"))) == 13


def test_the_python_example(tiny_bundle: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        environment = {**os.environ, "AEIC_BUNDLE": str(tiny_bundle)}
        done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
