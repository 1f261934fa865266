"""``aeic frames``, ``ask`` and ``delete``: requests to a running cloud."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

import typer

from aeic_tools.command_line.options import Force, Json, Token, Url, finish
from aeic_tools.extras import needs

app = typer.Typer()


@app.command()
def frames(
    source: Annotated[str | None, typer.Option(help="Only the frames of this source.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most.")] = 20,
    url: Url = "http://127.0.0.1:8081",
    token: Token = None,
    json: Json = False,
) -> None:
    """Print the newest frames of a cloud with their ids, the newest first."""
    with needs("client"):
        from aeic_tools.commands import frames as frames_command

    finish(frames_command.frames(source, limit, url, token, as_json=json))


@app.command()
def ask(
    frame: Annotated[UUID, typer.Argument(metavar="FRAME", help="The id of a frame in the cloud.")],
    region: Annotated[
        str | None,
        typer.Option(metavar="X,Y,W,H", help="A part of it, in pixels of the original; by default the whole."),
    ] = None,
    original: Annotated[bool, typer.Option("--original", help="The photograph, not a reconstruction.")] = False,
    now: Annotated[bool, typer.Option("--now", help="A new picture of the same camera, taken at once.")] = False,
    max_bytes: Annotated[
        int | None,
        typer.Option("--bytes", min=64, help="Largest answer, in bytes; by default 1500, or 32768 for an original."),
    ] = None,
    target: Annotated[str | None, typer.Option("-o", "--out", metavar="OUT", help="File of the picture.")] = None,
    url: Url = "http://127.0.0.1:8081",
    token: Token = None,
    deadline: Annotated[float, typer.Option(min=1, max=86400, help="Seconds after which the request expires.")] = 60.0,
    force: Force = False,
) -> None:
    """Ask a camera for more of a picture: a region, better quality, the original, or a new one.

    See docs/look-closer.md.
    """
    with needs("client"):
        from aeic_tools.commands import ask as ask_command

    limit = max_bytes or (32768 if original else 1500)
    asked = frame, region, limit, target, url, token, deadline
    finish(ask_command.ask(*asked, original=original, now=now, force=force))


@app.command()
def delete(
    frames: Annotated[list[UUID] | None, typer.Argument(metavar="[FRAME]...", help="Ids of frames.")] = None,
    source: Annotated[str | None, typer.Option(help="Delete the frames of this source instead.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only those that arrived at or after this time.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Only those that arrived before this time.")] = None,
    url: Url = "http://127.0.0.1:8081",
    token: Token = None,
) -> None:
    """Delete frames from a cloud, with their pictures. Prints their number.

    An operator can bring them back with aeic store undelete, during the grace period.
    """
    with needs("client"):
        from aeic_tools.commands import delete as delete_command

    finish(delete_command.delete(frames or [], source, since, until, url, token))
