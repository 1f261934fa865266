"""Checking a store, copying it while it is in use, and putting a copy in its place.

The check works on both databases, and changes nothing. Copies are made of SQLite only; PostgreSQL has ``pg_dump`` and
``pg_restore``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.store import log_recovery, migrate
from cloud_decoder.store.database import UNREADABLE
from cloud_decoder.store.log_recovery import sync
from cloud_decoder.store.schema import frames, tallies

MESSAGES = 20
"""Findings and ids that a report lists, at most; their number is counted in full."""
ROWS = 500


@dataclass
class StoreCheck:
    """The result of :func:`check`. ``ok`` where nothing is wrong."""

    revision: str = ""
    frames: int = 0
    """Rows."""
    bitstreams: int = 0
    """Bitstreams whose digest was compared."""
    damaged: int = 0
    """Bitstreams that are not the ones that arrived."""
    damaged_ids: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damaged and not self.problems

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"ok": self.ok, **dataclasses.asdict(self)}


class PageCheck:
    """SQLite's ``quick_check`` of the file at ``path``, which another thread may interrupt."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._interrupted = False

    def run(self) -> list[str]:
        """What is wrong with the pages; empty where all are well, or after :meth:`interrupt`."""
        try:
            with contextlib.closing(_read_only(self._path)) as connection:
                self._connection = connection  # a new one: an open connection would not read all pages again
                found = [str(row[0]) for row in connection.execute(f"PRAGMA quick_check({MESSAGES})")]
        except sqlite3.Error as error:
            return [] if self._interrupted else [str(error)]
        except UnicodeDecodeError:  # the message quotes a damaged name
            return ["a page is damaged: names in the schema are not text any more"]
        finally:
            self._connection = None
        return [] if found == ["ok"] else [line for message in found for line in message.splitlines()][:MESSAGES]

    def interrupt(self) -> None:
        """End :meth:`run` soon."""
        self._interrupted = True
        if (connection := self._connection) is not None:
            connection.interrupt()


def check(url: sa.URL) -> StoreCheck:
    """Look for damage in the store at ``url``: pages (SQLite), digests of all bitstreams, and counters."""
    report = StoreCheck()
    if url.get_backend_name() == "sqlite":
        if problem := log_recovery.problem(Path(_file(url))):  # SQLite would not show it
            report.problems.append(problem)
            return report
        report.problems += PageCheck(_file(url)).run()
        engine = sa.create_engine("sqlite://", creator=lambda: _read_only(_file(url)))
    else:
        engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            report.revision = migrate.current(connection) or "none"
            if report.revision == "none":
                report.problems.append("there are no tables of a store")
            else:
                _check_rows(connection, report)
    except SQLAlchemyError as error:
        report.problems.append(str(getattr(error, "orig", None) or type(error).__name__).strip())
    except UNREADABLE as error:
        report.problems.append(f"a value is not what was written ({type(error).__name__}: {error})"[:300])
    finally:
        engine.dispose()
    report.problems = list(dict.fromkeys(report.problems))[:MESSAGES]
    return report


def backup(url: sa.URL, target: Path) -> StoreCheck:
    """Copy the SQLite store at ``url``, which may be in use, to the new file ``target``, and check the copy.

    ``StoreUnavailable`` where the copy cannot be made or is damaged. No file is left then.
    """
    if target.exists():
        raise StoreUnavailable(f"{target} exists: choose another name")
    return _copy(_file(url), target)


def restore(url: sa.URL, source: Path) -> tuple[StoreCheck, Path | None]:
    """Put a checked copy of ``source`` in the place of the SQLite store at ``url``, while no service uses it.

    The store that was there is kept under another name, which is returned with the report on the new one. Where root
    restores, the new file belongs to the owner of the folder, as whom the service runs.
    """
    path = Path(_file(url, missing=True))
    with _unused(path):
        incoming = path.with_name(path.name + ".incoming")
        incoming.unlink(missing_ok=True)
        report = _copy(str(source), incoming)
        _give_to_owner_of_folder(incoming)
        kept: Path | None = None
        if path.exists():
            kept = path.with_name(f"{path.name}.before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
            for suffix in "-wal", "-shm", "":  # the log first: with another database it would be applied to that one
                with contextlib.suppress(FileNotFoundError):
                    path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
        for suffix in "-wal", "-shm":  # of a database that is gone
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        incoming.rename(path)
        sync(path.parent)
    return report, kept


def _check_rows(connection: sa.Connection, report: StoreCheck) -> None:
    stored: dict[tuple[str, str], int] = {}
    columns = (frames.c.seq, frames.c.id, frames.c.tenant, frames.c.state, frames.c.digest, frames.c.bitstream)
    last = -1
    while True:
        query = sa.select(*columns).where(frames.c.seq > last).order_by(frames.c.seq).limit(ROWS)
        found = connection.execute(query).all()
        if not found:
            break
        last = found[-1].seq
        report.frames += len(found)
        for row in found:
            stored[row.tenant, row.state] = stored.get((row.tenant, row.state), 0) + 1
            if row.bitstream is None:
                continue
            report.bitstreams += 1
            if hashlib.sha256(row.bitstream).hexdigest() != row.digest:
                report.damaged += 1
                report.damaged_ids += [str(row.id)] if len(report.damaged_ids) < MESSAGES else []
    if report.revision >= "0003":
        counted = sa.select(tallies.c.tenant, tallies.c.state, sa.func.sum(tallies.c.frames))
        totals = connection.execute(counted.group_by(tallies.c.tenant, tallies.c.state)).all()
        tallied = {(tenant, state): int(count) for tenant, state, count in totals if count}
        if tallied != stored and connection.dialect.name == "sqlite":  # PostgreSQL's may have changed in between
            report.problems.append("the counters (table tallies) do not match the frames")


def _copy(source: str, target: Path) -> StoreCheck:
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        with contextlib.closing(_read_only(source)) as old:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            with contextlib.closing(sqlite3.connect(partial)) as new:
                old.backup(new)
                new.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        report = check(sa.URL.create("sqlite", database=str(partial)))
        if not report.ok:
            found = [*report.problems, *(f"{report.damaged} damaged bitstreams" for _ in range(bool(report.damaged)))]
            raise StoreUnavailable(f"{source} is damaged ({'; '.join(found)[:300]}): use an older copy")
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.rename(target)
        sync(target.parent)
        return report
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"{source} cannot be copied to {target} ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _unused(path: Path) -> Iterator[None]:
    """Hold the lock of the data folder, as a service does."""
    with (path.parent / "lock").open("wb") as lock:
        _give_to_owner_of_folder(path.parent / "lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreUnavailable(f"a cloud is running in {path.parent}: stop it first") from error
        yield


def _file(url: sa.URL, missing: bool = False) -> str:
    if url.get_backend_name() != "sqlite":
        raise StoreUnavailable(
            "this works on SQLite: on PostgreSQL use 'pg_dump --format=custom' to make a backup and 'pg_restore' to"
            " restore it"
        )
    path = Path(url.database or "")
    if not missing and not path.is_file():
        raise StoreUnavailable(f"there is no file {path}: write sqlite:///PATH/store.db")
    return str(path)


def _read_only(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=10)


def _give_to_owner_of_folder(path: Path) -> None:
    """Root's files would be closed to the service."""
    if os.geteuid() == 0:
        folder = path.parent.stat()
        os.chown(path, folder.st_uid, folder.st_gid)
