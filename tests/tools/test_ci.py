"""CI, releases and the files that describe them agree with one another."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import aeic

ROOT = Path(__file__).parent.parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
VERBS = ("test", "test-skipped", "check", "lock-check", "docs", "dist", "test-quickstart", "test-compose")
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


def _verbs(job: str) -> list[str]:
    commands = [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]
    return [command.removeprefix("make ") for command in commands if command.startswith("make ")]


def test_both_ci_scripts_call_the_same_verbs() -> None:
    script = re.findall(r"^run ([a-z-]+)$", (ROOT / ".ci" / "run").read_text(), re.M)
    assert script == _verbs("suite") and set(VERBS) <= set(script)
    assert set(script) | set(_verbs("pythons")) <= TARGETS


def test_the_readmes_test_command_is_the_first_step() -> None:
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(), re.M) and _verbs("suite")[0] == "test"


def test_pre_commit_calls_the_same_verbs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    verbs = [hook["entry"].removeprefix("make ") for hook in hooks if hook["entry"].startswith("make ")]
    assert verbs == ["lint", "types"] and set(verbs) <= TARGETS


@pytest.mark.parametrize(
    ("schema", "name"),
    [("vendor.github-workflows", ".github/workflows/ci.yml"), ("vendor.citation-file-format", "CITATION.cff")],
)
def test_files_for_others_fit_their_schemas(schema: str, name: str) -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    if not checker.exists():
        pytest.skip("check-jsonschema is not installed: make install")
    command = [str(checker), "--builtin-schema", schema, name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _ci(tmp_path: Path, outcome: str) -> subprocess.CompletedProcess[str]:
    """.ci/run with a `make` that prints pytest's closing lines instead of testing."""
    checkout = tmp_path / "checkout"
    (checkout / ".ci").mkdir(parents=True)
    (checkout / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    program = tmp_path / "bin" / "make"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncase "$1" in\n{outcome}\nesac\n')
    program.chmod(0o755)
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    command = ["bash", ".ci/run"]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


WHOLE = "=== 1400 passed, 29 skipped in 700.00s (0:11:40) ==="


def test_ci_ends_with_the_closing_line_of_the_whole_suite(tmp_path: Path) -> None:
    done = _ci(tmp_path, f'test) echo "{WHOLE}";;\ntest-skipped) echo "=== 29 passed in 60.00s ===";;')
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == WHOLE, done.stdout + done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_ci_fails_where_one_step_fails_and_runs_the_others(tmp_path: Path, verb: str) -> None:
    lines = f'{verb}) echo "=== 1 failed, 3 passed in 1.00s ==="; exit 2;;\ntest) echo "{WHOLE}";;'
    done = _ci(tmp_path, lines)
    assert done.returncode == 1 and f"failed: make {verb}\n" in done.stdout
    assert done.stdout.count("== make ") == len(VERBS)
    assert re.search(r"\d+ passed", done.stdout.splitlines()[-1])


def _make(target: str, tmp_path: Path, program: str) -> subprocess.CompletedProcess[str]:
    """`make TARGET` with another program in the place of Python."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    command = ["make", "-s", target, f"PYTHON={python}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("target", ["test-compose", "test-quickstart"])
def test_where_a_target_cannot_run_make_says_so_and_succeeds(target: str, tmp_path: Path) -> None:
    line = f"make {target}: not run here: it needs root"
    done = _make(target, tmp_path, f'[ "$2" = --probe ] || exit 3\necho "{line}"')
    assert (done.returncode, done.stdout) == (0, line + "\n"), done.stderr


@pytest.mark.parametrize("target", ["test-compose", "test-quickstart"])
def test_a_run_that_fails_is_a_failure(target: str, tmp_path: Path) -> None:
    assert _make(target, tmp_path, "exit 1").returncode != 0  # the probe itself


def test_the_release_is_the_same_everywhere() -> None:
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released and released[0] == aeic.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == aeic.__version__ and citation["license"] == "Apache-2.0"
    assert re.search(
        rf"^\| {re.escape(aeic.__version__.rpartition('.')[0])}\.x ", (ROOT / "SECURITY.md").read_text(), re.M
    )


def test_the_description_of_the_wheel_links_nowhere_into_the_repository() -> None:
    """README.md has pictures and links by path, which lead nowhere on a page of a package index."""
    pytest.importorskip("hatch_fancy_pypi_readme", reason="hatch-fancy-pypi-readme is not installed: make install")
    command = [sys.executable, "-m", "hatchling", "metadata", "readme"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert text.count("\n## ") == (ROOT / "README.md").read_text().count("\n## ")
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", text) == [] and "<picture" not in text and "<img" not in text
