"""A skip is noted by a run of the whole suite and fails where AEIC_CI is set, unless its reason is allowed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUITE = {
    "conftest.py": """
        from tests.support import skips
        def pytest_configure(config):
            skips.register(config)
    """,
    "test_module.py": "import pytest\npytest.importorskip('no_such_module', reason='no such module')\n",
    "test_cases.py": """
        import pytest
        @pytest.mark.parametrize("kind", ["a", "b"])
        def test_one(kind):
            if kind == "b":
                pytest.skip("no server (Debian: server)")
        def test_allowed():
            pytest.skip("the machine is busy with something else: a time would say nothing")
        @pytest.mark.xfail(reason="known")
        def test_expected():
            assert False
        @pytest.mark.skipif(True, reason="no tool")
        def test_marked(): ...
    """,
    "pytest.ini": "[pytest]\ntestpaths = .\n",
}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    for name, text in SUITE.items():
        (tmp_path / name).write_text(text.replace("\n        ", "\n").lstrip())
    return tmp_path


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    settings = {name: value for name, value in os.environ.items() if name != "AEIC_CI"}
    settings |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, env=settings, capture_output=True, text=True)


def test_skips_are_noted_and_fail_when_run_again(suite: Path) -> None:
    first = _run(suite, "pytest")
    assert first.returncode == 0 and "1 passed, 4 skipped, 1 xfailed" in first.stdout, first.stdout
    noted = json.loads((suite / ".pytest_cache/v/aeic/skipped").read_text())
    allowed = "test_cases.py::test_allowed"
    assert sorted(noted) == [allowed, "test_cases.py::test_marked", "test_cases.py::test_one[b]", "test_module.py"]

    again = _run(suite, "tests.support.skips")
    assert again.returncode != 0 and "no such module" in again.stdout, again.stdout
    (suite / "test_module.py").write_text("def test_it(): ...\n")
    again = _run(suite, "tests.support.skips")
    assert again.returncode != 0 and "1 failed, 1 passed, 1 skipped, 1 error" in again.stdout, again.stdout
    assert "skipped, where a skip is a failure (AEIC_CI): no server (Debian: server)" in again.stdout

    # What is noted stays until the whole suite runs again, so that a second try runs the same tests.
    assert json.loads((suite / ".pytest_cache/v/aeic/skipped").read_text()) == noted
    (suite / "test_cases.py").write_text("def test_one(): ...\n")
    assert _run(suite, "pytest").returncode == 0
    nothing = _run(suite, "tests.support.skips")
    assert nothing.returncode == 0 and "skipped no test" in nothing.stdout


def test_without_a_run_there_is_nothing_to_run_again(tmp_path: Path) -> None:
    done = _run(tmp_path, "tests.support.skips")
    assert done.returncode == 1 and "make test" in done.stderr
