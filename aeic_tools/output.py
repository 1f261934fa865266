"""The output of a command: one line of text on stderr, or one line of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from aeic.errors import AeicError
from aeic_tools.files import PIPE, Job, UsageError


def say(target: str, line: str, facts: dict[str, Any], as_json: bool, quiet: bool) -> None:
    """Report one finished job. JSON goes to stdout, or to stderr when stdout carries the data itself."""
    if as_json:
        print(json.dumps(facts), file=sys.stderr if target == PIPE else sys.stdout, flush=True)
    elif not quiet:
        print(line, file=sys.stderr, flush=True)


def size_line(job: Job, facts: dict[str, Any]) -> str:
    """``owl.jpg -> owl.aeic: 768x512, 1204 bytes, 0.0245 bpp, rate 1, 143 ms``. bpp is of the whole frame."""
    width, height = facts["width"], facts["height"]
    original = facts.get("original_width", width), facts.get("original_height", height)
    scaled = f" (scaled down from {original[0]}x{original[1]})" if original != (width, height) else ""
    return (
        f"{job.source} -> {job.target}: {width}x{height}{scaled}, {facts['bytes']} bytes, "
        f"{facts['bpp']:.4f} bpp, rate {facts['rate']}, {facts['seconds'] * 1e3:.0f} ms"
    )


FAILURES = (AeicError, UsageError, OSError, MemoryError)
"""What ends one job and not the others."""
NO_MEMORY = "this machine has too little memory for it: scale the picture down, or close other programs"


def each(jobs: Sequence[Job], work: Callable[[Job], None]) -> int:
    """Do every job; a failing one is named on stderr and does not stop the others. The first failure's exit code."""
    code = 0
    for job in jobs:
        try:
            work(job)
        except FAILURES as error:
            print(f"aeic: {job.source}: {str(error) or NO_MEMORY}", file=sys.stderr)
            code = code or exit_code(error)
    return code


def each_with_bar(jobs: Sequence[Job], work: Callable[[Job], None]) -> int:
    """:func:`each`, with a progress bar on stderr in place of a line for each job."""
    with typer.progressbar(length=len(jobs), file=sys.stderr, show_pos=True) as bar:

        def step(job: Job) -> None:
            try:
                work(job)
            except FAILURES:
                print(file=sys.stderr)  # the message starts on a new line
                raise
            finally:
                bar.update(1)

        return each(jobs, step)


def exit_code(error: Exception) -> int:
    """0 ok, 1 anything else (a disk that is full), 2 usage, 3 input, 4 damaged frame, 5 model missing or another."""
    if isinstance(error, AeicError):
        return error.exit_code
    return 2 if isinstance(error, UsageError) else 1
