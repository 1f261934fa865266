"""``aeic split`` and ``join``: frames in packets."""

from __future__ import annotations

from typing import Annotated

import typer

from aeic_tools.command_line.options import Force, finish

app = typer.Typer()


@app.command()
def split(
    source: Annotated[str, typer.Argument(metavar="FRAME", help="A .aeic file, or - for stdin.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="A folder, or - for lines of hexadecimal.")],
    size: Annotated[int, typer.Option(min=1, max=65535, help="Largest packet, in bytes, such as 222, 255 or 340.")],
    pad: Annotated[bool, typer.Option(help="Fill every packet up to the size.")] = False,
    force: Force = False,
) -> None:
    """Split a frame into packets for a radio or modem. See docs/packets.md."""
    from aeic_tools.commands import packets

    finish(packets.split(source, target, size, pad=pad, force=force))


@app.command()
def join(
    sources: Annotated[list[str], typer.Argument(metavar="IN...", help="Folders, packet files, or - for hexadecimal.")],
    target: Annotated[str, typer.Argument(metavar="FRAME", help="The .aeic file to write, or - for stdout.")],
    force: Force = False,
) -> None:
    """Join packets to the frame that they hold. The exit code is 4 if bytes are missing."""
    from aeic_tools.commands import packets

    finish(packets.join(sources, target, force=force))
