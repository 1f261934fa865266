"""A machine for the spool whose disk and clocks a test controls: it fails, fills up or stops at a given I/O step.

Two seams: `System` for the spool's own file operations, and a SQLite VFS, made with ctypes, for those of SQLite. Both
count their steps together. Writes are remembered until they are synced, so that a power cut can undo them, in part.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import itertools
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from edge_encoder.spool.system import System

OK, FULL, CANTOPEN = 0, 13, 14
IOERR_READ, IOERR_WRITE, IOERR_FSYNC, IOERR_TRUNCATE, IOERR_DELETE = (10 | n << 8 for n in (1, 3, 4, 6, 10))
RESERVE_BYTES = 4 << 20

_P = ctypes.c_void_p
_INT = ctypes.c_int
_OPEN = ctypes.CFUNCTYPE(_INT, _P, _P, _P, _INT, _P)
_DELETE = ctypes.CFUNCTYPE(_INT, _P, _P, _INT)
_READ = ctypes.CFUNCTYPE(_INT, _P, _P, _INT, ctypes.c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(_INT, _P, ctypes.c_int64)
_SYNC = ctypes.CFUNCTYPE(_INT, _P, _INT)


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("iVersion", _INT), ("szOsFile", _INT), ("mxPathname", _INT), ("pNext", _P), ("zName", ctypes.c_char_p),
        ("pAppData", _P), ("xOpen", _P), ("xDelete", _P), *((f"other{n}", _P) for n in range(14)),
    )  # fmt: skip


class _Methods(ctypes.Structure):
    _fields_ = (
        ("iVersion", _INT), ("xClose", _P), ("xRead", _P), ("xWrite", _P), ("xTruncate", _P), ("xSync", _P),
        *((f"other{n}", _P) for n in range(13)),
    )  # fmt: skip


class _Undo:
    """A write that is not durable yet."""

    def __init__(self, path: Path, offset: int, data: bytes | None) -> None:
        with path.open("rb") as file:
            self.size = file.seek(0, 2)
            file.seek(offset)
            self.before = file.read(len(data) if data is not None else self.size)
        self.offset, self.data = offset, data

    def revert(self, path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(self.offset)
            file.write(self.before)
            file.truncate(self.size)

    def tear(self, path: Path, rng: random.Random) -> None:
        """Only the first part of it was written."""
        if self.data:
            with path.open("r+b") as file:
                file.seek(self.offset)
                file.write(self.data[: rng.randrange(len(self.data))])


class Machine(System):
    """Counts I/O steps in `steps`. At step `fault_at` it does `fault`: "kill" or "power" (it stops, and `disk(folder)`
    gives what is left), "eio" or "full" (until `mend()`), "once" (one EIO). `torn`: the step is done in part."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.steps = 0
        self.fault_at: int | None = None
        self.fault = ""
        self.torn = False
        self.mode = ""  # "", "eio", "full", "dead"
        self.power_cut = False
        self.wall, self.boot, self.steady = 1_795_900_000.0, 100.0, 1000.0
        self.start = "boot-0"
        self.spare = 0
        self.pending: dict[Path, list[_Undo]] = {}
        self.renames: list[tuple[Path, Path, bytes | None]] = []
        self.vfs = _register(self)

    # -- faults ------------------------------------------------------------------------------------------------

    def plan(self, after: int, fault: str, *, torn: bool = False) -> None:
        self.fault_at, self.fault, self.torn = self.steps + after, fault, torn

    def mend(self) -> None:
        """The disk works again."""
        if self.mode != "dead":
            self.mode, self.spare = "", 0

    def step(self) -> str:
        """Counts a step: "" to do it, else the mode in which it fails; "torn ..." after a part."""
        if self.mode == "dead":
            return "dead"
        self.steps += 1
        if self.fault_at is not None and self.steps >= self.fault_at:
            self.fault_at = None
            if self.fault == "once":
                return "torn eio" if self.torn else "eio"
            self.mode = "dead" if self.fault in ("kill", "power") else self.fault
            self.power_cut = self.fault == "power"
            return f"torn {self.mode}" if self.torn else self.mode
        return self.mode

    def disk(self, folder: Path, target: Path) -> None:
        """Copies what a stopped machine has on its disk."""
        target.mkdir()
        for path in folder.iterdir():
            if path.name not in ("spool.lock", "spool.sqlite3-shm"):
                shutil.copyfile(path, target / path.name)
        if self.power_cut:
            for path, undos in self.pending.items():
                copy = target / path.name
                if not undos or not copy.exists():
                    continue
                keep = self.rng.randrange(len(undos) + 1)
                for undo in reversed(undos[keep:]):
                    undo.revert(copy)
                if keep < len(undos):
                    undos[keep].tear(copy, self.rng)
            for source, moved, replaced in reversed(self.renames[self.rng.randrange(len(self.renames) + 1) :]):
                if (target / moved.name).exists():
                    (target / moved.name).replace(target / source.name)
                    if replaced is not None:
                        (target / moved.name).write_bytes(replaced)

    def _do(self, kind: str = "") -> None:
        """Raises OSError unless the step is to be done."""
        mode = self.step().removeprefix("torn ")
        if mode == "full":
            if kind == "grow" and not self.spare:
                raise OSError(errno.ENOSPC, "the test's disk is full")
        elif mode:
            raise OSError(errno.EIO, "the test's disk fails")

    # -- System ------------------------------------------------------------------------------------------------

    def create(self, path: Path) -> BinaryIO:
        self._do()
        self.pending.pop(path, None)
        return super().create(path)

    def write(self, file: BinaryIO, offset: int, data: bytes | memoryview) -> None:
        self._do("grow")
        self.pending.setdefault(Path(file.name), [])  # image files are never synced, nor used after a restart
        super().write(file, offset, data)

    def sync(self, path: Path) -> None:
        self._do()
        if path.is_dir():
            self.renames.clear()
        else:
            self.pending.pop(path, None)

    def rename(self, source: Path, target: Path) -> None:
        self._do()
        self.renames.append((source, target, target.read_bytes() if target.exists() else None))
        super().rename(source, target)
        self.pending[target] = self.pending.pop(source, [])

    def unlink(self, path: Path) -> None:
        self._do()
        if path.name == "spool.reserve" and path.exists():
            self.spare = RESERVE_BYTES
        super().unlink(path)
        self.pending.pop(path, None)

    def allocate(self, path: Path, size: int) -> None:
        self._do()
        if self.mode == "full":
            raise OSError(errno.ENOSPC, "the test's disk is full")
        path.touch()

    def free_bytes(self, folder: Path) -> int:
        return self.spare if self.mode == "full" else 1 << 40

    def wall_seconds(self) -> float:
        return self.wall

    def steady_seconds(self) -> float:
        return self.steady

    def boot_seconds(self) -> float:
        return self.boot

    def boot_id(self) -> str:
        return self.start

    # -- SQLite ------------------------------------------------------------------------------------------------

    def sqlite_write(self, path: Path, data: bytes, offset: int, do: Callable[[int], int]) -> int:
        mode = self.step()
        grows = offset + len(data) > path.stat().st_size
        if mode == "full":
            if not grows or self.spare >= len(data):
                self.spare -= len(data) if grows else 0
                mode = ""
            else:
                return FULL
        if mode.startswith("torn"):
            part = self.rng.randrange(len(data))
            if part:
                self._remember(path, offset, data[:part])
                do(part)
        if mode:
            return FULL if "full" in mode else IOERR_WRITE
        self._remember(path, offset, data)
        return do(len(data))

    def sqlite_truncate(self, path: Path, size: int, do: Callable[[], int]) -> int:
        mode = self.step()
        if mode and "full" not in mode:
            return IOERR_TRUNCATE
        self.pending.setdefault(path, []).append(_Undo(path, size, None))
        return do()

    def sqlite_sync(self, path: Path) -> int:
        mode = self.step()
        if mode and "full" not in mode:
            return IOERR_FSYNC
        self.pending.pop(path, None)
        return OK

    def sqlite_delete(self, path: Path, do: Callable[[], int]) -> int:
        mode = self.step()
        if mode and "full" not in mode:
            return IOERR_DELETE
        self.pending.pop(path, None)
        return do()

    def _remember(self, path: Path, offset: int, data: bytes) -> None:
        self.pending.setdefault(path, []).append(_Undo(path, offset, data))


_numbers = itertools.count()
_kept: list[Any] = []  # SQLite keeps pointers to these
_machine: Machine | None = None
_NAME = "aeic-faulty"


def _register(machine: Machine) -> str:
    """Makes the machine the one behind the VFS, of which the process has one."""
    global _machine
    _machine = machine
    if not _kept:
        _install()
    return _NAME


def _install() -> None:
    library = ctypes.CDLL(ctypes.util.find_library("sqlite3"))
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    original = library.sqlite3_vfs_find(None).contents
    vfs = _Vfs.from_buffer_copy(original)
    vfs.zName = _NAME.encode()
    paths: dict[int, Path] = {}
    wrapped: dict[int, _Methods] = {}
    open_file, delete_file = _OPEN(original.xOpen), _DELETE(original.xDelete)

    def machine() -> Machine:
        assert _machine is not None
        return _machine

    def x_open(self: int, name: int, file: int, flags: int, out: int) -> int:
        if machine().mode in ("dead", "eio"):
            return CANTOPEN
        result = open_file(self, name, file, flags, out)
        address = ctypes.cast(file, ctypes.POINTER(_P))
        if address[0]:
            paths[file] = Path(os.fsdecode(ctypes.string_at(name))) if name else Path()
            address[0] = ctypes.addressof(wrapped.setdefault(address[0], wrap(address[0])))
        return result

    def x_delete(self: int, name: int, sync: int) -> int:
        path = Path(os.fsdecode(ctypes.string_at(name)))
        return machine().sqlite_delete(path, lambda: delete_file(self, name, 0))

    def wrap(address: int) -> _Methods:
        if address in wrapped:
            return wrapped[address]
        methods = _Methods.from_buffer_copy(_Methods.from_address(address))
        read, write, truncate = _READ(methods.xRead), _READ(methods.xWrite), _TRUNCATE(methods.xTruncate)

        def x_read(file: int, buffer: int, size: int, offset: int) -> int:
            if machine().mode in ("dead", "eio"):
                return IOERR_READ
            return int(read(file, buffer, size, offset))

        def x_write(file: int, buffer: int, size: int, offset: int) -> int:
            data = ctypes.string_at(buffer, size)
            return machine().sqlite_write(paths[file], data, offset, lambda part: write(file, buffer, part, offset))

        def x_truncate(file: int, size: int) -> int:
            return machine().sqlite_truncate(paths[file], size, lambda: truncate(file, size))

        def x_sync(file: int, flags: int) -> int:
            return machine().sqlite_sync(paths[file])

        for name, kind, function in (
            ("xRead", _READ, x_read), ("xWrite", _READ, x_write), ("xTruncate", _TRUNCATE, x_truncate),
            ("xSync", _SYNC, x_sync),
        ):  # fmt: skip
            callback = kind(function)
            _kept.append(callback)
            setattr(methods, name, ctypes.cast(callback, _P).value)
        return methods

    callbacks = _OPEN(x_open), _DELETE(x_delete)
    vfs.xOpen, vfs.xDelete = (ctypes.cast(callback, _P).value for callback in callbacks)
    _kept.extend((library, vfs, wrapped, *callbacks))
    library.sqlite3_vfs_register(ctypes.byref(vfs), 0)
