"""Both services end with the same code for the same kind of failure, and name the cause in one line without a value."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.roots import DOCS

SERVICES = {"edge": "edge_encoder", "cloud": "cloud_decoder"}
# (variable after the service's prefix, its value, exit code, words on stderr)
CASES = [
    ("PROT", "8080", 2, "unknown setting"),
    ("BUNDLE", "/nowhere", 5, "no bundle at"),
    ("HOST", "203.0.113.1", 1, "203.0.113.1"),
]


@pytest.mark.parametrize("service", SERVICES)
def test_the_exit_code_names_the_kind_of_failure(service: str, tmp_path: Path, tiny_bundle: Path) -> None:
    prefix = f"AEIC_{service.upper()}_"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AEIC_")}
    runs = []
    for number, (name, value, _, _) in enumerate(CASES):
        own = {f"{prefix}BUNDLE": str(tiny_bundle), f"{prefix}DATA_DIR": str(tmp_path / str(number))}
        command = [sys.executable, "-m", SERVICES[service], "--port", "0"]
        runs.append(
            subprocess.Popen(command, env={**clean, **own, prefix + name: value}, stderr=subprocess.PIPE, text=True)
        )
    for run, (name, _, code, words) in zip(runs, CASES, strict=True):
        _, errors = run.communicate(timeout=120)
        said = [line for line in errors.splitlines() if line.startswith(f"{service}: ")]
        assert run.returncode == code and len(said) == 1 and words in said[0], (name, run.returncode, errors)
        assert "Traceback" not in errors


def test_both_pages_list_the_same_codes() -> None:
    lists = {}
    for service in SERVICES:
        text = (DOCS / "reference" / f"{service}.md").read_text().partition("| exit code |")[2].partition("\n\n")[0]
        lists[service] = dict(re.findall(r"^\| (\d+) \| (.*) \|$", text, re.M))
    only_at_the_edge = {"75": lists["edge"].get("75")}
    assert lists["edge"] == lists["cloud"] | only_at_the_edge
    assert {code for _, _, code, _ in CASES} <= {int(code) for code in lists["cloud"]}
