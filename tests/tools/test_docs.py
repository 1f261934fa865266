"""The texts say what is there: commands of the README in the Makefile and the CLI, files of the tree, pins."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.roots import ROOT

TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", TEXTS, ids=_name)
def test_make_targets_named_in_texts_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.M))
    assert named <= targets, f"{path.name} names {sorted(named - targets)}"


def test_every_target_has_its_line_of_help() -> None:
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", MAKEFILE, re.M)
    assert phony
    for target in phony.group(1).replace("\\\n", " ").split():
        assert re.search(rf"^{target}:", MAKEFILE, re.M), f".PHONY names {target}, which is no target"
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"install", "demo", "run", "test", "check"} <= set(re.findall(r"make (\S+)", shown))


@pytest.mark.parametrize("path", TEXTS, ids=_name)
def test_subcommands_named_in_texts_exist(path: Path) -> None:
    from typer.main import get_command

    from aeic_tools.cli import app

    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"(?:^|`|bin/)aeic ([a-z-]+)", path.read_text(), re.M))
    assert named <= commands, f"{path.name} names {sorted(named - commands)}"


@pytest.mark.parametrize("path", TEXTS, ids=_name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / link).exists(), f"{path.name} links to {link}"


def test_the_tree_in_the_readme_names_folders_that_exist() -> None:
    tree = (ROOT / "README.md").read_text().partition("```tree")[2].partition("```")[0]
    named = re.findall(r"^([\w./-]+/)\s", tree, re.M)
    assert len(named) >= 10
    assert [name for name in named if not (ROOT / name).is_dir()] == []


def test_examples_are_listed_with_their_terms() -> None:
    listed = set(re.findall(r"^\| ([\w.]+\.(?:jpg|png|webp)) ", (ROOT / "examples" / "README.md").read_text(), re.M))
    found = {path.name for path in (ROOT / "examples").iterdir() if path.suffix != ".md"}
    assert listed == found and len(found) >= 8
    assert all(path.stat().st_size <= 300_000 for path in (ROOT / "examples").iterdir())


def test_pins_are_what_is_installed() -> None:
    """constraints.txt is the environment the tests run in, as far as it is installed here."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    wrong = []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is not None and not pin.marker.evaluate({"extra": ""}):
                continue
            try:
                found = version(pin.name)
            except PackageNotFoundError:
                continue
            if not pin.specifier.contains(found):  # a build for CPUs, 2.14.1+cpu, is 2.14.1
                wrong.append(f"{pin.name}: {found} installed, {pin.specifier} pinned")
    assert not wrong


def test_extras_and_their_conflicts() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    assert {"edge-cpu", "edge-gpu", "cloud-cpu", "cloud", "train", "dev"} <= set(extras)
    assert project["tool"]["uv"]["conflicts"]
    heavy = re.compile(r"torch|diffusers|compressai|sqlalchemy")
    for extra in ("edge-base", "edge-cpu", "edge-gpu"):
        assert not [name for name in extras[extra] if heavy.search(name)]


def test_python_version() -> None:
    assert (3, 11) <= sys.version_info[:2] <= (3, 14)


def test_nothing_is_said_of_the_machine_it_was_made_on() -> None:
    """No absolute path of a home or work folder in what is committed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    here = re.compile(rb"/(?:work|root|home/\w+)/(?:main|shared|\.)")
    names = [
        name for name in listed.stdout.split("\0") if name.endswith((".py", ".md", ".toml", ".yml", ".json", ".txt"))
    ]
    own = Path(__file__).relative_to(ROOT).as_posix()
    assert [n for n in names if n != own and (ROOT / n).is_file() and here.search((ROOT / n).read_bytes())] == []
