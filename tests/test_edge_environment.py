"""The edge's own environment, made from the extra alone: no torch in it, and it encodes a photograph.

Kept in .venv-edge and reused while the pins stay as they are; the first time takes about half a minute.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.roots import ROOT

LOCKS = ("requirements/build.txt", "requirements/edge-cpu.txt")
PINS = (ROOT / "pyproject.toml", *(ROOT / lock for lock in LOCKS))


@pytest.fixture(scope="module")
def edge_python() -> Path:
    """The interpreter of .venv-edge."""
    folder = ROOT / ".venv-edge"
    python, stamp = folder / "bin" / "python", folder / "pins"
    state = hashlib.sha256(b"".join(path.read_bytes() for path in PINS)).hexdigest()
    if not stamp.exists() or stamp.read_text() != state:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        named = [word for lock in LOCKS for word in ("-r", lock)]
        subprocess.run([*command, "--require-hashes", *named], cwd=ROOT, check=True)
        subprocess.run([*command, "--no-deps", "--no-build-isolation", "-e", "."], cwd=ROOT, check=True)
        stamp.write_text(state)
    return python


@pytest.mark.slow
def test_no_torch_and_nothing_of_the_cloud(edge_python: Path) -> None:
    command = [str(edge_python), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    found = {package["name"].lower() for package in json.loads(subprocess.check_output(command))}
    assert {"numpy", "pillow", "onnxruntime", "grpcio", "fastapi"} <= found
    assert not found & {
        "torch",
        "torchvision",
        "diffusers",
        "compressai",
        "sqlalchemy",
        "scipy",
        "onnx",
        "transformers",
    }
    assert len(found) < 50, sorted(found)


@pytest.mark.slow
def test_it_is_small_on_disk(edge_python: Path) -> None:
    """Under 300 MB, pip included."""
    files = [path for path in edge_python.parent.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < 300e6


@pytest.mark.slow
def test_it_encodes_a_photograph(edge_python: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    frame = tmp_path / "owl.aeic"
    command = [str(edge_python.with_name("aeic")), "encode", "examples/owl.jpg", str(frame), "--json"]
    environment = {**os.environ, "AEIC_BUNDLE": str(tiny_bundle)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["width"], facts["height"], facts["bytes"]) == (768, 512, frame.stat().st_size)


@pytest.mark.slow
def test_the_service_imports_and_decoding_names_its_extra(edge_python: Path, tiny_bundle: Path) -> None:
    subprocess.run([str(edge_python), "-c", "import edge_encoder.service"], cwd=ROOT, check=True)
    command = [str(edge_python.with_name("aeic")), "cloud"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and 'pip install ".[cloud-cpu]"' in done.stderr, done.stderr
