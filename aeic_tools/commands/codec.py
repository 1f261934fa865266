"""The commands encode, decode, info and latents: the Python API, file by file."""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from aeic.errors import AeicError
from aeic_tools import files, output
from aeic_tools.extras import needs
from aeic_tools.files import PIPE, Job, UsageError

FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}


@dataclass(frozen=True)
class Options:
    """What encode and decode have in common: the bundle's folder, threads (0 is all), how to write, how to report."""

    bundle: Path | None = None
    threads: int = 0
    force: bool = False
    as_json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class SizeOptions:
    """How pictures are encoded: as in Encoder.encode, and the name of a preset."""

    rate: str | None = None
    max_bytes: int | None = None
    target_bytes: int | None = None
    max_side: int | None = None
    preset: str | None = None
    stretch: bool = False
    colour_fix: str = "never"


@dataclass(frozen=True)
class DecodeOptions:
    """How frames are decoded: as in Decoder.from_bundle and DecoderSettings."""

    device: str = "auto"
    official_tiling: bool = False


def encode(
    source: str,
    target: str,
    wanted: SizeOptions,
    options: Options,
    *,
    recursive: bool = False,
    skip_existing: bool = False,
) -> int:
    """Pictures to frames. Returns the exit code."""
    from aeic.pixels import SUFFIXES

    jobs = files.plan(source, target, SUFFIXES, ".aeic", recursive=recursive)
    for job in jobs:
        if Path(job.target).suffix.lower() in SUFFIXES:
            raise UsageError(f"{job.target} is named like a picture: name the frame .aeic")
    with needs("edge-cpu"):
        from edge_encoder.encoding import ColourFixChoice
        from edge_encoder.encoding.encoder import Encoder
        from edge_encoder.encoding.scaling import PRESETS
    size = next((size for name, size in PRESETS.items() if name == wanted.preset), None)
    if wanted.preset is not None and size is None:
        raise UsageError(f"--preset {wanted.preset}: choose one of {', '.join(PRESETS)}")
    target_bytes = wanted.target_bytes or (size.target_bytes if size else None)
    max_side = wanted.max_side or (size.max_side if size else None)
    if skip_existing:
        there = [job for job in jobs if job.target != PIPE and Path(job.target).exists()]
        jobs = [job for job in jobs if job not in there]
        if there and not options.quiet:
            print(f"aeic: {len(there)} frames exist already and are not changed", file=sys.stderr)
        if not jobs:
            return 0
    fix = next((choice for choice in get_args(ColourFixChoice) if choice == wanted.colour_fix), None)
    if fix is None:
        raise UsageError(f"--colour-fix {wanted.colour_fix}: choose one of {', '.join(get_args(ColourFixChoice))}")
    encoder = Encoder.from_bundle(options.bundle, threads=options.threads)
    encoder.colour_fix = fix
    rate = None if wanted.rate is None else encoder.bundle.rate(wanted.rate).number

    def work(job: Job) -> None:
        files.refuse_overwrite(job.target, options.force)
        data = files.read(job.source)
        start = time.perf_counter()
        encoded = encoder.encode(data, rate, wanted.max_bytes, target_bytes, max_side, stretch=wanted.stretch)
        facts: dict[str, Any] = {
            "input": job.source,
            "output": job.target,
            "width": encoded.width,
            "height": encoded.height,
            "original_width": encoded.original_width,
            "original_height": encoded.original_height,
            "bytes": len(encoded.data),
            "bpp": encoded.bpp,
            "rate": encoded.rate,
            "seconds": time.perf_counter() - start,
            "timings": encoded.timings,
        }
        files.write(job.target, encoded.data, options.force)
        if not bar:
            output.say(job.target, output.size_line(job, facts), facts, options.as_json, options.quiet)

    bar = len(jobs) > 1 and sys.stderr.isatty() and not options.as_json and not options.quiet
    return output.each_with_bar(jobs, work) if bar else output.each(jobs, work)


def decode(source: str, target: str, picture_format: str | None, decoding: DecodeOptions, options: Options) -> int:
    """Frames to pictures. The format is the target's suffix, or ``picture_format``; png for a pipe or a folder."""
    suffix = f".{(picture_format or 'png').lower()}"
    jobs = files.plan(source, target, (".aeic",), suffix)
    for job in jobs:
        _format_of(job.target, picture_format)
    with needs("cloud-cpu"):
        from aeic.pixels import save_picture
        from cloud_decoder.inference.decoder import Decoder, DecoderSettings
    try:
        settings = DecoderSettings(threads=options.threads, official_tiling=decoding.official_tiling)
        decoder = Decoder.from_bundle(options.bundle, decoding.device, settings)
    except (ValueError, RuntimeError, AssertionError) as error:  # not known, or nothing that torch can open here
        raise UsageError(
            f"--device {decoding.device}: {str(error).splitlines()[0]}; leave it out, or use onnx"
        ) from error

    def work(job: Job) -> None:
        from aeic.bitstream import Frame

        files.refuse_overwrite(job.target, options.force)
        data = files.read(job.source)
        start = time.perf_counter()
        info = Frame.parse(data).info
        picture = decoder.decode([data])[0]
        encoded = save_picture(picture, _format_of(job.target, picture_format))
        facts: dict[str, Any] = {
            "input": job.source,
            "output": job.target,
            "width": info.width,
            "height": info.height,
            "bytes": info.bytes,
            "bpp": info.bpp,
            "rate": info.rate,
            "seconds": time.perf_counter() - start,
        }
        files.write(job.target, encoded, options.force)
        output.say(job.target, output.size_line(job, facts), facts, options.as_json, options.quiet)

    return output.each(jobs, work)


def _format_of(target: str, wanted: str | None) -> str:
    if wanted and f".{wanted.lower()}" not in FORMATS:
        raise UsageError(f"--format {wanted}: choose png, webp or jpeg")
    suffix = f".{wanted.lower()}" if wanted else ".png" if target == PIPE else Path(target).suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"{target} does not end in .png, .webp or .jpg: name it so, or give --format")
    return FORMATS[suffix]


def info(source: str, *, bundle: Path | None, as_json: bool) -> int:
    """A frame's header, and where its bytes go. Needs no model; names the rate if the bundle at hand made the frame."""
    with needs("edge-cpu"):
        from aeic.bitstream import STATISTICS_VERSION, Frame
        from aeic.bundle import Bundle

    def work(job: Job) -> None:
        found = Frame.parse(files.read(job.source)).info
        header = found.bytes - found.payload_bytes
        facts: dict[str, Any] = {"file": job.source, **found.as_dict(), "header_bytes": header, "model": None}
        try:
            loaded = Bundle.load(bundle, verify=False)
            if loaded.fingerprint == found.fingerprint:
                facts |= {"model": loaded.name, "rate_name": loaded.rate(found.rate).name}
        except AeicError:
            if bundle is not None:
                raise
        if as_json:
            print(json.dumps(facts))
            return
        model = facts["model"] or "another model than the one here"
        print(
            f"{job.source}: AEIC version {found.version}, {found.width}x{found.height}, "
            f"{found.bytes} bytes, {found.bpp:.4f} bpp\n"
            f"  header   {header} bytes{', with colour statistics' if found.version == STATISTICS_VERSION else ''}\n"
            f"  payload  {found.payload_bytes} bytes\n"
            f"  rate     {found.rate}{' (' + facts['rate_name'] + ')' if 'rate_name' in facts else ''}\n"
            f"  model    {found.fingerprint} ({model})"
        )

    return output.each([files.one(source, PIPE)], work)


def latents(source: str, target: str, *, bundle: Path | None, threads: int, force: bool) -> int:
    """The decoded latents as an npz, and the digest of its ``y_hat`` on stdout. Needs no torch.

    The npz holds ``y_hat`` (M, h, w) float32 as docs/bitstream.md defines it, ``inverse_gains`` (M,) float32, by which
    the synthesis multiplies it, ``symbols`` (M, h, w) int16, ``z_symbols`` (Cz, hz, wz) int32, and ``size`` (2,) int32,
    height and width of the picture in pixels.
    """
    with needs("cloud-cpu"):
        import numpy as np

        from aeic.bundle import Bundle
        from aeic.latent_codec import LatentCodec

    def work(job: Job) -> None:
        files.refuse_overwrite(job.target, force)
        codec = LatentCodec(Bundle.load(bundle), threads)
        decoded = codec.decode_symbols(files.read(job.source))
        arrays = {
            "y_hat": decoded.y_hat,
            "inverse_gains": codec.bundle.tables.inverse_gains[decoded.frame.rate],
            "symbols": decoded.symbols,
            "z_symbols": decoded.z_symbols,
            "size": np.array([decoded.frame.height, decoded.frame.width], np.int32),
        }
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        files.write(job.target, buffer.getvalue(), force)
        if job.target != PIPE:
            print(decoded.digest)

    return output.each([files.one(source, target)], work)
