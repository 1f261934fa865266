"""Options that several commands have, and how a command ends or passes its arguments on."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from aeic_tools.extras import needs

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""The context of a command whose arguments another program reads."""

In = Annotated[str, typer.Argument(metavar="IN", help="A file, a folder, or - for stdin.")]
Out = Annotated[str, typer.Argument(metavar="OUT", help="A file, a folder, or - for stdout.")]
Model = Annotated[Path | None, typer.Option("-m", "--model", help="Folder of the bundle [env: AEIC_BUNDLE].")]
Threads = Annotated[int, typer.Option("-j", "--threads", min=0, help="CPU threads; 0 uses all.")]
Force = Annotated[bool, typer.Option("-f", "--force", help="Overwrite existing files.")]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON for each file.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")]
Url = Annotated[str, typer.Option(help="Address of the cloud.", envvar="AEIC_URL")]
Token = Annotated[str | None, typer.Option(help="Bearer token.", envvar="AEIC_TOKEN")]


def run_module(module: str, extra: str, arguments: list[str]) -> None:
    """``python -m module arguments`` in this process."""
    sys.argv = [f"aeic {module}", *arguments]
    with needs(extra):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def pass_on(run: Callable[[list[str]], Any], arguments: list[str]) -> None:
    """Call another program's ``main``; its result is the exit code."""
    finish(run(arguments))


def finish(code: int | None) -> None:
    """End the command with this exit code."""
    if code:
        raise typer.Exit(code)
