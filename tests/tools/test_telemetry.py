"""Nothing phones home: ONNX Runtime's telemetry is off before it is imported, whichever package comes first.

With telemetry on, ONNX Runtime 1.32 leaves a device id and an event database in the home folder, and looks its vendor's
server up. No test switches it on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENCODE = (
    "from pathlib import Path; from edge_encoder.encoding.encoder import Encoder; "
    "Encoder.from_bundle().encode(Path('examples/owl.jpg').read_bytes())"
)


def run(code: str, home: Path, **variables: str) -> None:
    """``code`` in a fresh interpreter whose home folder is ``home``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    environment = kept | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"} | variables
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=120)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_encode_leaves_no_trace_in_the_home_folder(tmp_path: Path) -> None:
    run(ENCODE, tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("package", ["aeic", "edge_encoder", "cloud_decoder", "aeic_tools", "aeic_nets", "aeic_train"])
def test_every_package_switches_it_off_first(package: str, tmp_path: Path) -> None:
    code = (
        f"import {package}, os, sys; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'; "
        "assert 'onnxruntime' not in sys.modules"
    )
    run(code, tmp_path)


def test_images_and_units_set_it_too() -> None:
    for name in ("edge.Dockerfile", "cloud.Dockerfile", "aeic-edge.service"):
        assert "ORT_DISABLE_TELEMETRY=1" in (ROOT / "deploy" / name).read_text(), name
