"""``aeic encode``, ``decode``, ``info`` and ``latents``: pictures and frames on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from aeic_tools.command_line.options import Force, In, Json, Model, Out, Quiet, Threads, finish

app = typer.Typer()


@app.command()
def encode(
    source: In,
    target: Out,
    rate: Annotated[str | None, typer.Option("-r", "--rate", help="Rate point, by number or name.")] = None,
    max_bytes: Annotated[
        int | None, typer.Option(min=10, help="Largest frame, in bytes; the picture is scaled down if necessary.")
    ] = None,
    target_bytes: Annotated[
        int | None, typer.Option(min=10, help="The same, or the smallest frame if nothing fits.")
    ] = None,
    max_side: Annotated[
        int | None, typer.Option(min=16, max=8192, help="Scale longer sides down to N pixels first.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="300B, 1kB or 2kB: about this size for any picture.")] = None,
    stretch: Annotated[
        bool, typer.Option("--stretch", help="Spread the grey levels of 16-bit pictures, for thermal cameras.")
    ] = False,
    colour_fix: Annotated[
        str, typer.Option(help="Add 12 bytes for a colour correction: never, always, or auto (over 768x768 pixels).")
    ] = "never",
    recursive: Annotated[bool, typer.Option("-R", "--recursive", help="Include subfolders.")] = False,
    skip_existing: Annotated[bool, typer.Option(help="Skip pictures whose frame exists, to resume.")] = False,
    model: Model = None,
    threads: Threads = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Encode a picture (JPEG, PNG, WebP, AVIF, HEIC), or a folder of them, into frames of one or two kilobytes."""
    from aeic_tools.commands import codec

    options = codec.Options(model, threads, force, json, quiet)
    wanted = codec.SizeOptions(rate, max_bytes, target_bytes, max_side, preset, stretch, colour_fix)
    finish(codec.encode(source, target, wanted, options, recursive=recursive, skip_existing=skip_existing))


@app.command()
def decode(
    source: In,
    target: Out,
    picture_format: Annotated[
        str | None,
        typer.Option("--format", help="png, webp or jpeg; the default is the suffix of OUT, and png for a pipe."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or onnx (no torch).")] = "auto",
    official_tiling: Annotated[
        bool, typer.Option(help="Decode large pictures in the tiles of the authors' code (profiles se and me, torch).")
    ] = False,
    model: Model = None,
    threads: Threads = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Decode a frame into a picture."""
    from aeic_tools.commands import codec

    options = codec.Options(model, threads, force, json, quiet)
    finish(codec.decode(source, target, picture_format, codec.DecodeOptions(device, official_tiling), options))


@app.command()
def info(source: Annotated[str, typer.Argument(metavar="FILE")], model: Model = None, json: Json = False) -> None:
    """Print the header of a frame. Needs no model."""
    from aeic_tools.commands import codec

    finish(codec.info(source, bundle=model, as_json=json))


@app.command()
def latents(
    source: Annotated[str, typer.Argument(metavar="FILE")],
    target: Annotated[str, typer.Argument(metavar="OUT.npz")],
    model: Model = None,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """Write the decoded latents as an npz and print their digest.

    Two machines that print the same digest agree bit for bit. The digest is the SHA-256 of the npz's y_hat:
    little-endian float32, in C order, before the gain is undone. The synthesis takes y_hat times inverse_gains, channel
    by channel.
    """
    from aeic_tools.commands import codec

    finish(codec.latents(source, target, bundle=model, threads=threads, force=force))
