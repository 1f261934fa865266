"""Who may import whom, and what the edge never loads."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.roots import ROOT

HEAVY = ("torch", "torchvision", "diffusers", "compressai", "sqlalchemy", "aeic_nets")


def test_import_contracts() -> None:
    """The layers and the forbidden imports of pyproject.toml, by import-linter."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert f"{len(contracts)} kept, 0 broken" in result.stdout, result.stdout


@pytest.mark.parametrize(
    "module", ["edge_encoder.service", "edge_encoder.encoding.encoder", "aeic.latent_codec", "aeic_tools.cli"]
)
def test_a_fresh_interpreter_stays_light(module: str) -> None:
    """Importing the edge loads nothing heavy, even where it is installed."""
    code = f"import sys, {module}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["cloud_decoder.service", "cloud_decoder.inference.decoder"])
def test_the_cloud_loads_torch_only_when_asked(module: str) -> None:
    """The CPU cloud has no torch: importing must not need it."""
    code = f"import sys, {module}\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "False"


def test_decoding_with_torch_needs_no_training_package() -> None:
    """``aeic[cloud]`` has torch and diffusers, and neither CompressAI, torchvision nor onnx."""
    absent = ("compressai", "torchvision", "onnx", "onnxscript")
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n"
        "import aeic_nets.runtime.torch_backend, aeic_nets.integer.torch_ops"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_one_machine_loads_nothing_of_the_fleet() -> None:
    """A cloud on SQLite starts without psycopg, Alembic, obstore and Ray, store included."""
    fleet = ("psycopg", "alembic", "obstore", "ray", "cloud_decoder.fleet", "cloud_decoder.store.migrations")
    code = (
        "import sys, cloud_decoder.service, cloud_decoder.__main__\nfrom cloud_decoder.store.store import Store\n"
        f"Store('sqlite://').close()\nprint([name for name in {fleet!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_every_package_that_ships_is_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert len(packages) >= 8
    assert [name for name in packages if not (ROOT / name / "py.typed").exists()] == []
