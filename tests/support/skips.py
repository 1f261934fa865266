"""Runs the tests again that were skipped because a program was missing. A skip is then a failure: `make test-skipped`.

A run of the whole suite notes which tests were skipped. ``python -m tests.support.skips`` runs those tests again with
AEIC_CI=1, and then every skip fails whose reason is not in ALLOWED.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

CACHE_KEY = "aeic/skipped"
CACHED = Path(".pytest_cache", "v", CACHE_KEY)
# Skips that stay skips in CI: they want data that is in no repository, hours, or an idle or different machine.
ALLOWED = re.compile(
    "set AEIC_GOLDENS to the folder"
    r"|full size: minutes, \d+ GB of memory"
    "|the machine is busy with something else"
    "|constriction has no wheel here"
    "|torch is a build without Triton"
)


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why this was skipped."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def is_skip(report: pytest.TestReport | pytest.CollectReport) -> bool:
    """Whether this was skipped; an expected failure has the same outcome and is none."""
    return report.skipped and not hasattr(report, "wasxfail")


class Skips:
    """The hooks. ``strict``: a skip that is not allowed fails. ``note``: the whole suite runs, note what it skips."""

    def __init__(self, strict: bool, note: pytest.Cache | None) -> None:
        self._strict = strict
        self._note = note
        self._skipped: list[str] = []

    def _judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if is_skip(report) and self._strict and not ALLOWED.search(reason_of(report)):
            report.outcome = "failed"
            report.longrepr = f"skipped, where a skip is a failure (AEIC_CI): {reason_of(report)}"

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self._judge(report)
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        self._judge(report)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if is_skip(report):
            self._skipped.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if is_skip(report):
            self._skipped.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        if self._note is not None:
            self._note.set(CACHE_KEY, self._skipped)


def register(config: pytest.Config) -> None:
    """Put the hooks into a run; only a run of the whole suite is noted."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.collectonly
    strict = os.environ.get("AEIC_CI", "") not in ("", "0")
    config.pluginmanager.register(Skips(strict, config.cache if whole else None), "aeic-skips")


def main() -> int:
    """Run what the last run of the whole suite skipped; 0 where it skipped nothing."""
    if not CACHED.exists():
        sys.exit("no run of the whole suite is known here: make test")
    skipped: list[str] = json.loads(CACHED.read_text())
    if not skipped:
        print("the last run of the whole suite skipped no test")
        return 0
    os.environ["AEIC_CI"] = "1"
    return int(pytest.main(skipped))


if __name__ == "__main__":
    sys.exit(main())
