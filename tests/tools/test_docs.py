"""The texts say what is there: commands of the README in the Makefile and the CLI, files of the tree, pins."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

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

    command: Any = get_command(app)  # a group, because the program has several commands
    commands = set(command.commands)
    named = set(re.findall(r"(?:^|`|bin/)aeic ([a-z-]+)", path.read_text(), re.M))
    assert named <= commands, f"{path.name} names {sorted(named - commands)}"


@pytest.mark.parametrize("path", TEXTS, ids=_name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / link).exists(), f"{path.name} links to {link}"


def test_a_picture_has_one_description() -> None:
    """A file that stands for two pictures was overwritten by one of them."""
    described: dict[Path, set[str]] = {}
    for path in TEXTS:
        for words, link in re.findall(r"!\[([^]]*)\]\(([^)#:]+)\)", path.read_text()):
            described.setdefault((path.parent / link).resolve(), set()).add(words)
    assert described and {path.name: words for path, words in described.items() if len(words) > 1} == {}


PACKAGES = (
    "aeic|aeic_[a-z]+|edge_encoder|cloud_decoder|benchmarks|deploy|docs|examples|models|protos|requirements|tests"
)
NAMED = re.compile(rf"`(?:python )?((?:{PACKAGES})/[\w./-]*)`")
"""A file or folder of the repository in inline code."""


@pytest.mark.parametrize("path", TEXTS, ids=_name)
def test_files_and_folders_named_in_texts_exist(path: Path) -> None:
    named = {name for name in NAMED.findall(path.read_text()) if "NAME" not in name}
    missing = {name for name in named if not (ROOT / name).exists()}
    assert not missing, f"{path.name} names {sorted(missing)}"


@pytest.mark.parametrize("path", TEXTS, ids=_name)
def test_modules_named_in_texts_exist(path: Path) -> None:
    named = re.findall(
        r"python -m ((?:aeic|edge_encoder|cloud_decoder|benchmarks|deploy|tests)[\w.]*)", path.read_text()
    )
    places = {name: ROOT / name.replace(".", "/") for name in named}
    missing = [
        name for name, at in places.items() if not (at.with_suffix(".py").exists() or (at / "__main__.py").exists())
    ]
    assert not missing


def test_the_page_of_the_shipped_model_has_the_figures_of_its_card() -> None:
    """The card counts in the digest of the bundle and stays as it was released; the page says the same."""
    rows = re.compile(r"^\| \d[^|`]*\|(?: [\d.]+ \|){6}$", re.M)
    card = (ROOT / "models" / "aeic-se-nano" / "model_card.md").read_text()
    page = (ROOT / "docs" / "shipped-model.md").read_text()
    assert rows.findall(page) == rows.findall(card) and len(rows.findall(card)) == 6
    for figure in ("21,245", "7.2 hours", "0.34 %", "1,536"):
        assert figure in card and figure in page


def test_names_in_the_tour_are_in_the_files_beside_them() -> None:
    """`Class.method` or `function`, followed by "in `path/file.py`"; the other files exist at least."""
    text = (ROOT / "docs" / "tour.md").read_text()
    assert [file for file in re.findall(r"`([\w/]+/\w+\.py)`", text) if not (ROOT / file).is_file()] == []
    pairs = re.findall(r"`([\w.]+)`[^`]*?\bin\s+`([\w/]+\.py)`", text)
    assert len(pairs) >= 8
    for name, file in pairs:
        source = (ROOT / file).read_text()
        for part in name.split("."):
            assert re.search(rf"^\s*(?:async )?(?:def|class) {part}\b", source, re.M), f"{name} is not in {file}"


MODULES = sorted(ROOT.glob("aeic*/**/*.py")) + sorted(ROOT.glob("*_*coder/**/*.py"))


def _unknown_files(path: Path, docstring: str) -> list[str]:
    """Files that a docstring names and that are not beside the module, in its package or in the repository."""
    package = ROOT / path.relative_to(ROOT).parts[0]
    names = re.findall(r"(?<![\w/*-])((?:\w+/)*\w+\.py)\b", docstring)
    return [name for name in names if not any((at / name).is_file() for at in (path.parent, package, ROOT))]


def test_files_named_in_module_docstrings_exist() -> None:
    found = {
        str(path.relative_to(ROOT)): _unknown_files(path, ast.get_docstring(ast.parse(path.read_text())) or "")
        for path in MODULES
    }
    assert len(found) > 200 and {path: names for path, names in found.items() if names} == {}
    assert _unknown_files(MODULES[0], "See bundle.py, store/no_such.py and cloud_decoder/tiling.py.") == [
        "store/no_such.py"
    ]


def test_the_layers_in_the_docs_are_those_that_import_linter_checks() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    checked = {c.get("containers", [""])[0]: c["layers"] for c in contracts if c["type"] == "layers"}
    text = (ROOT / "docs" / "architecture.md").read_text().partition("may import which")[2]
    blocks = text.partition("```\n")[2].partition("```")[0].split("\n\n")
    packages = ("", "aeic_service", "cloud_decoder", "edge_encoder", "aeic_train", "aeic_nets", "aeic_tools")
    assert checked.keys() == set(packages)
    for block, package in zip(blocks, packages, strict=True):
        shown = [set(re.findall(r"\w+", line[11:])) for line in block.splitlines()]
        layers = [set(re.findall(r"\w+", layer)) for layer in checked[package]]
        assert [layer for layer in layers if layer in shown] == shown, f"layers of {package or 'the packages'}"


def test_pages_named_in_the_code_exist() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    for name in listed.stdout.split("\0"):
        if name.endswith((".py", ".toml", ".yml", ".yaml", ".proto", "Makefile", "Dockerfile", ".service")):
            text = (ROOT / name).read_text()
            for page in re.findall(r"\bdocs/[\w/-]+\.(?:md|svg|jpg)", text):
                assert (ROOT / page).exists(), f"{name} names {page}"


def test_the_diagrams_are_what_their_script_draws() -> None:
    folder = ROOT / "docs" / "diagrams"
    script = runpy.run_path(str(folder / "draw.py"))
    for name, draw in script["DIAGRAMS"].items():
        for theme in script["THEMES"]:
            assert (folder / f"{name}-{theme}.svg").read_text() == draw(theme)


def test_the_tree_in_the_readme_names_folders_that_exist() -> None:
    tree = (ROOT / "README.md").read_text().partition("```tree")[2].partition("```")[0]
    named = re.findall(r"^([\w./-]+/)\s", tree, re.M)
    assert len(named) >= 10
    assert [name for name in named if not (ROOT / name).is_dir()] == []


def test_the_readme_lists_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (ROOT / "README.md").read_text().partition("<summary>Extras")[2].partition("</details>")[0]
    named = [name for row in re.findall(r"^\| (`[^|]+) \|", table, re.M) for name in re.findall(r"`([\w-]+)`", row)]
    assert sorted(named) == sorted(extras)


def test_examples_are_listed_with_their_terms() -> None:
    listed = set(re.findall(r"^\| ([\w.]+\.(?:jpg|png|webp)) ", (ROOT / "examples" / "README.md").read_text(), re.M))
    found = {path.name for path in (ROOT / "examples").iterdir() if path.suffix not in (".md", ".py")}
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
