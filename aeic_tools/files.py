"""The inputs and outputs of a command: files, folders and pipes. It does not interpret their contents."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aeic.errors import AeicError, InputError

PIPE = "-"


class UsageError(Exception):
    """The command was called in a way that cannot work. Exit code 2."""


class Unwritable(AeicError):
    """What was made could not be put where it should go. Exit code 1."""


def is_there(path: Path) -> bool:
    """Whether a file or folder exists. ``PermissionError`` if this user cannot know: ``Path.exists`` would say no."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@dataclass(frozen=True)
class Job:
    """One thing to read and one to write; each a path, or ``-`` for the pipe."""

    source: str
    target: str


def plan(source: str, target: str, suffixes: Sequence[str], new_suffix: str, *, recursive: bool = False) -> list[Job]:
    """The jobs of one call: one for a file or a pipe; for a folder, one for each file in it with one of ``suffixes``.

    A target that is an existing folder, or that belongs to a source folder, gets the source's name with ``new_suffix``.
    Two sources of one stem (a.jpg, a.png) keep their old suffix as well, so that neither is lost. A target that is
    its own source is refused even with ``-f``: a photograph that its frame replaces is gone. ``recursive`` takes the
    files of folders in the folder too, into folders of the same names.
    """
    if source in ("", PIPE) or not Path(source).is_dir():
        if source and PIPE not in (source, target) and target and Path(target).is_dir():
            target = str(Path(target) / (Path(source).stem + new_suffix))
        return [one(source, target)]
    if target in ("", PIPE):
        raise UsageError(f"{source} is a folder and cannot go into one pipe: give a folder to write to")
    if Path(target).exists() and not Path(target).is_dir():
        raise UsageError(f"{source} is a folder and {target} is not: give a folder to write to")
    every = Path(source).rglob("*") if recursive else Path(source).iterdir()
    found = sorted(path for path in every if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        raise InputError(f"no file in {source} ends in {', '.join(suffixes)}")
    count = Counter(path.with_suffix("") for path in found)
    names = [path.stem if count[path.with_suffix("")] == 1 else path.name for path in found]
    folders = [Path(target) / path.parent.relative_to(source) for path in found]
    return [
        Job(str(path), str(folder / (name + new_suffix)))
        for path, folder, name in zip(found, folders, names, strict=True)
    ]


def one(source: str, target: str) -> Job:
    """A job of one file or pipe. ``UsageError`` for an empty name and for a target that is the source itself."""
    if not source or not target:  # an unset shell variable; Path("") would be the working directory
        raise UsageError("a name is empty: give a file, a folder or - for a pipe")
    paths = Path(source), Path(target)
    if PIPE not in (source, target) and all(path.exists() for path in paths) and paths[0].samefile(paths[1]):
        raise UsageError(f"{target} is the input itself: give another name to write to")
    return Job(source, target)


def read(source: str) -> bytes:
    """All bytes of a file or of stdin. ``InputError`` if there is no such file."""
    if source == PIPE:
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error}): check the path") from error


def refuse_overwrite(target: str, force: bool) -> None:
    """``UsageError`` if ``target`` exists and ``force`` was not given. To be asked before the work is done."""
    if target != PIPE and not force and Path(target).exists():
        raise UsageError(f"{target} exists: give -f to overwrite it")


def write(target: str, data: bytes, force: bool) -> None:
    """Write a file whole or not at all (a temporary file beside it, then renamed), or stdout. Makes missing folders.

    ``UsageError`` if it exists and ``force`` was not given, ``Unwritable`` for a folder that takes none, a full disk.
    """
    refuse_overwrite(target, force)
    try:
        _write(target, data)
    except OSError as error:
        where = "stdout" if target == PIPE else target
        raise Unwritable(f"cannot write {where} ({error.strerror or error}): check the folder and its space") from error


def _write(target: str, data: bytes) -> None:
    if target == PIPE:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    if path.exists() and not path.is_file():  # /dev/null and its like are written to, never replaced
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files; what a person asked for is not
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
