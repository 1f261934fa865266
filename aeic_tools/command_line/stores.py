"""``aeic spool`` and ``aeic store``: the databases of both services."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from aeic_tools.extras import needs
from aeic_tools.files import UsageError, is_there

spool_app = typer.Typer(help="Commands for the edge's spool.", no_args_is_help=True)


@spool_app.command("check")
def spool_check(
    folder: Annotated[Path, typer.Argument(envvar="AEIC_EDGE_DATA_DIR", help="Folder of the spool.")],
) -> None:
    """Check a spool without changing it, even while the edge runs.

    Prints one line of JSON. The exit code is 4 if something is damaged.
    """
    with needs("edge-cpu"):
        from edge_encoder.spool.verification import check
    is_there(folder / "spool.sqlite3")
    report = check(folder)
    typer.echo(json.dumps({"ok": report.ok, **dataclasses.asdict(report)}))
    if not report.ok:
        raise typer.Exit(4)


store_app = typer.Typer(help="Commands for the cloud's store.", no_args_is_help=True)


@store_app.command()
def upgrade(
    url: Annotated[str, typer.Argument(envvar="AEIC_CLOUD_DATABASE_URL", help="SQLAlchemy URL of the store.")],
) -> None:
    """Migrate an older store to the current tables (extra fleet).

    It is safe to repeat. See docs/how-to/fleet.md.
    """
    with needs("fleet"):
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

        from cloud_decoder.store.migrate import upgrade as bring_up
    try:
        bring_up(make_url(url))
    except (ArgumentError, NoSuchModuleError):  # without the text: it may hold a password
        raise UsageError(
            "that is not the URL of a database: write postgresql+psycopg://USER:PASSWORD@HOST/NAME"
        ) from None
    except OperationalError as error:
        raise UsageError(f"the database cannot be reached ({error.orig}): check the address") from error


StoreUrl = Annotated[str, typer.Argument(envvar="AEIC_CLOUD_DATABASE_URL", help="SQLAlchemy URL of the store.")]
TenantOf = Annotated[str | None, typer.Option(help="Only frames of this tenant.")]
IdOf = Annotated[UUID | None, typer.Option(help="Only the frame with this id.")]


@store_app.command()
def requeue(url: StoreUrl, tenant: TenantOf = None, id: IdOf = None) -> None:
    """Return failed frames to the queue, after the cause has been fixed. Prints their number."""
    with _store(url) as store:
        print(store.queue.requeue(store.clock(), tenant, id))


@store_app.command()
def undelete(
    url: StoreUrl,
    tenant: TenantOf = None,
    id: IdOf = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Also frames that clients have deleted.")] = False,
) -> None:
    """Bring back frames that retention has marked and not removed yet. Prints their number.

    Correct the retention settings first, or the frames are marked again. Frames that clients have deleted come back
    with --id or --deleted only.
    """
    with _store(url) as store:
        print(store.retention.undelete(tenant, id, deleted=deleted))


@store_app.command()
def accept_clock(url: StoreUrl) -> None:
    """Trust the clock as it is now, after the service has refused it as implausible. Retention then runs again."""
    with _store(url) as store:
        from cloud_decoder.store.clock import accept

        seen, now = accept(store.database)
    print(f"the last time seen was {seen}; the store now trusts {now}")


@store_app.command("check")
def store_check(url: StoreUrl) -> None:
    """Check a store without changing it, even while the cloud runs: pages, digests and counters.

    Prints one line of JSON. The exit code is 4 if something is damaged.
    """
    with needs("cloud-cpu"):
        from cloud_decoder.store.backup import check
    report = check(_store_address(url))
    typer.echo(json.dumps(report.as_dict()))
    if not report.ok:
        raise typer.Exit(4)


@store_app.command("backup")
def store_backup(url: StoreUrl, target: Annotated[Path, typer.Argument(metavar="FILE", help="The new file.")]) -> None:
    """Copy an SQLite store to a new file, even while the cloud runs, and check the copy. Prints one line of JSON."""
    with needs("cloud-cpu"):
        from cloud_decoder.store.backup import backup
    typer.echo(json.dumps(backup(_store_address(url), target).as_dict()))


@store_app.command("restore")
def store_restore(
    url: StoreUrl, source: Annotated[Path, typer.Argument(metavar="FILE", help="A file of aeic store backup.")]
) -> None:
    """Check a backup and replace an SQLite store with it. Stop the cloud first.

    The old store is kept beside it. Prints one line of JSON.
    """
    with needs("cloud-cpu"):
        from cloud_decoder.store.backup import restore
    report, kept = restore(_store_address(url, missing=True), source)
    typer.echo(json.dumps(report.as_dict() | {"kept": None if kept is None else str(kept)}))


def _store_address(url: str, missing: bool = False) -> Any:
    """The parsed URL of a store. ``UsageError`` if it is not one, or names a file that does not exist."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        address = make_url(url)
        sqlite = address.get_backend_name() == "sqlite"
    except (ArgumentError, NoSuchModuleError):  # without the text: it may hold a password
        raise UsageError("that is not the URL of a database: write sqlite:///PATH/store.db") from None
    file = Path(address.database or "")
    if sqlite and not (is_there(file) and file.is_file()) and not missing:
        raise UsageError("there is no such file: write sqlite:///PATH/store.db")  # do not create one
    return address


@contextlib.contextmanager
def _store(url: str) -> Iterator[Any]:
    """The store at ``url``, closed at the end."""
    with needs("cloud-cpu"):
        from cloud_decoder.store.store import Store
    store = Store(_store_address(url))
    try:
        yield store
    finally:
        store.close()
