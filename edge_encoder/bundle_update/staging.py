"""Model bundles on a box without containers: staged, tested here, put on trial, confirmed or rolled back.

    aeic bundle stage -> copied and tested -> on trial from the next start -> enough frames accepted -> current
                         |                    |
                         refused: nothing     refused: the current bundle
                         changes              is used again (trial.py)

The test runs in a process of its own (self_test.py). A bundle that becomes current makes the one before it `previous`,
which `aeic bundle rollback` brings back.

The folder holds one folder per bundle, named by its digest, and state.json, which is replaced atomically. When a trial
starts is in trial.py: so that every frame can be decoded, the frames of the spool come first. The current and the
previous bundle are kept, so `rollback` works at any time. Independent of pictures and gRPC.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from aeic.bundle import Bundle
from aeic.errors import BundleError

log = logging.getLogger("aeic.edge.staging")

TRIAL_STARTS = 3
"""Starts within which a bundle on trial must be confirmed; after them it is taken to crash the service."""
_CHECK_SECONDS = 300
_NAME_CHARS = 16
_INCOMING = ".incoming-"
_ABANDONED_SECONDS = 86_400


@dataclasses.dataclass(slots=True)
class BundleState:
    """Names of bundles; `current` empty means the bundle of the settings. `refused` says why the last trial ended."""

    current: str = ""
    previous: str = ""
    trial: str = ""
    starts: int = 0  # of the trial
    refused: str = ""


class Staging:
    """The bundles in `folder`; made when missing. Several processes may use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def state(self) -> BundleState:
        """The state on disk; an unreadable file is logged and counts as empty."""
        try:
            return BundleState(**json.loads((self.folder / "state.json").read_text()))
        except FileNotFoundError:
            return BundleState()
        except (ValueError, TypeError, RecursionError) as error:
            log.error("%s cannot be read (%s); the bundle of the settings is used", self.folder / "state.json", error)
            return BundleState()

    def path(self, name: str) -> Path | None:
        """The folder of a bundle; None for the empty name, which is the bundle of the settings."""
        return self.folder / name if name else None

    def stage(self, source: Path, digest: str = "") -> str:
        """Copies the bundle, tests it in a separate process and puts it on trial; returns its name.

        `digest` (hex), if given, is what it must have. BundleError when it is altered, fails its test or is current.
        """
        bundle = Bundle.load(source)
        if digest and bundle.digest.hex() != digest.lower():
            raise BundleError(f"{source} has digest {bundle.digest.hex()}, not {digest}: fetch the right bundle")
        name = bundle.digest.hex()[:_NAME_CHARS]
        incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.folder))
        incoming.chmod(0o755)  # the service may run as another user
        try:
            for file in ("bundle.json", *bundle.manifest["files"]):
                shutil.copyfile(source / file, incoming / file)
                _sync(incoming / file)
            _check(incoming)
            with self._changing() as state:
                if name == state.current:
                    raise BundleError(f"bundle {name} is the current one already")
                if not (self.folder / name).exists():
                    incoming.rename(self.folder / name)
                state.trial, state.starts, state.refused = name, 0, ""
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return name

    def begin_trial(self) -> str:
        """Counts a start with the bundle on trial and returns its name; "" without one, or after TRIAL_STARTS."""
        with self._changing() as state:
            if state.trial and state.starts >= TRIAL_STARTS:
                state.refused = f"{state.trial}: not confirmed within {TRIAL_STARTS} starts"
                log.error("bundle on trial is rolled back: %s", state.refused)
                state.trial = ""
            state.starts += bool(state.trial)
            return state.trial

    def confirm(self) -> None:
        """The cloud has accepted enough of its frames: the bundle on trial becomes the current one."""
        with self._changing() as state:
            if state.trial:
                state.previous, state.current, state.trial = state.current, state.trial, ""
                log.info("bundle %s is confirmed", state.current)
                self._prune(state)

    def refuse(self, reason: str) -> None:
        """The trial is over; the current bundle stays."""
        with self._changing() as state:
            if state.trial:
                state.refused, state.trial = f"{state.trial}: {reason}"[:500], ""
                log.error("bundle on trial is rolled back: %s", state.refused)

    def rollback(self) -> str:
        """Ends a trial, or goes back to the previous bundle at the next start; returns the name then in use."""
        with self._changing() as state:
            if state.trial:
                state.refused, state.trial = f"{state.trial}: rolled back by the operator", ""
            else:
                state.current, state.previous = state.previous, state.current
            return state.current

    def _prune(self, state: BundleState) -> None:
        """Deletes bundles that are not in use, and what a process left that was killed while it copied one. A bundle
        that another process is staging now stays."""
        for path in self.folder.iterdir():
            if not path.is_dir() or path.name in (state.current, state.previous, state.trial):
                continue
            if path.name.startswith(_INCOMING) and time.time() - path.stat().st_mtime < _ABANDONED_SECONDS:
                continue
            shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[BundleState]:
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.state
            yield state
            fresh = self.folder / "state.json.new"
            fresh.write_text(json.dumps(dataclasses.asdict(state)))
            _sync(fresh)
            fresh.replace(self.folder / "state.json")
            _sync(self.folder)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _check(folder: Path) -> None:
    command = [sys.executable, "-m", "edge_encoder.bundle_update.self_test", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        raise BundleError(f"the bundle's test took over {_CHECK_SECONDS} s on this box; it is not staged") from None
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise BundleError(f"the bundle failed its test on this box ({why[0]}); it is not staged")
    log.info("bundle tested: %s", done.stdout.strip())
