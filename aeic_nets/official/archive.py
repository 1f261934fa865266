"""Decodes streams of the research code, so that archives made with it stay readable.

    aeic import-official STREAM OUT.npz --checkpoint FILE [--indexes FILE.npz] [--size WIDTHxHEIGHT]

STREAM is the research code's file (12 bytes of sizes, then the coder's stream) or, with ``--size``, the stream alone.
The decoder needs exactly the encoder's scale indexes, and those were computed in floats (docs/determinism.md). If they
were stored beside the stream, pass them with ``--indexes`` (``coded_idx``: the four passes, -1 where nothing is coded);
decoding then always succeeds. Without them they are computed here, which works only if this machine reproduces the
encoder's values. A stream that does not end exactly is refused as damaged, and no wrong picture is shown.

OUT.npz holds z_symbols (C, hz, wz) int32, symbols (M, h, w) int32 and y_hat (M, h, w) float32.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aeic import profiles
from aeic.errors import BundleError, Damaged, InputError, NotABitstream, Truncated
from aeic.passes import PASS_COUNT, gather, scatter
from aeic.profiles import HYPER_STRIDE, PICTURE_MULTIPLE
from aeic_nets.codec import Codec, coding_mask
from aeic_nets.official import keys, tables
from aeic_nets.official.flows import table_indexes
from aeic_nets.official.pickles import entry, read_file
from aeic_nets.official.range_coder import StreamDecoder
from aeic_nets.official.weights import load_codec

HEADER = 12
MAX_SIDE = 8192


@dataclass(frozen=True)
class Decoded:
    """What one stream holds. ``z_symbols`` (C, hz, wz), ``symbols`` (M, h, w) int32, ``y_hat`` (M, h, w) float32."""

    width: int
    height: int
    z_symbols: NDArray[np.int32]
    symbols: NDArray[np.int32]
    y_hat: NDArray[np.float32]


def parse_file(data: bytes) -> tuple[int, int, bytes]:
    """(width, height, coder stream) of a file of the research code; ``BitstreamError`` if it is none."""
    if len(data) < HEADER:
        raise Truncated("shorter than the 12 bytes an official file begins with: give the file as it was written")
    height, width, length = (int.from_bytes(data[at : at + 4], "big") for at in (0, 4, 8))
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise NotABitstream(f"no file of the research code: it says {width} x {height}. For a bare stream give --size")
    if len(data) != HEADER + length:
        raise Truncated(f"an official file of {length} bytes holds {len(data) - HEADER}: fetch it again")
    return width, height, data[HEADER:]


@torch.inference_mode()
def decode(codec: Codec, stream: bytes, width: int, height: int, stored: NDArray[np.int8] | None = None) -> Decoded:
    """One coder stream with the codec that made it. ``stored`` (M h w,) int8 are the scale indexes, if they are known.

    ``Damaged`` or ``Truncated`` if it does not come out even, ``InputError`` if the stored indexes do not fit.
    """
    channels, hyper = codec.profile.latent_channels, codec.profile.hyper_channels
    h, w = (2 * math.ceil(side / PICTURE_MULTIPLE) for side in (height, width))
    hz, wz = (math.ceil(side / HYPER_STRIDE) for side in (h, w))
    if stored is not None and (
        stored.shape != (channels * h * w,) or stored.min() < -1 or stored.max() >= profiles.SCALE_COUNT
    ):
        raise InputError(
            f"the stored indexes must be {channels * h * w} numbers from -1 to 63: give those of this stream"
        )
    y_tables, z_tables = tables.gaussian_tables(), tables.factorised_tables(codec)
    reader = StreamDecoder(stream)
    z_values = reader.read(z_tables, np.repeat(np.arange(hyper), hz * wz).tolist())
    z_symbols = torch.tensor(z_values, dtype=torch.float32).view(1, hyper, hz, wz)
    base = codec.h_s(z_symbols + codec.medians())[..., :h, :w]
    symbols = np.zeros((channels, h, w), np.int32)
    for i in range(PASS_COUNT):
        means, scales = codec.context(i, base)
        mask = coding_mask(i, base)
        quarter = (channels // PASS_COUNT, h, w)
        if stored is None:
            indexes = gather(table_indexes(scales)[0].numpy(), i).ravel()
        else:
            indexes = stored.reshape(PASS_COUNT, -1)[i]
        values = np.array(reader.read(y_tables, indexes.tolist()), np.int64)
        if np.abs(values).max(initial=0) >= 1 << 20:
            raise Damaged("a symbol of an official stream is out of all bounds: another model, or altered bytes")
        q = scatter(values.astype(np.int32).reshape(quarter), i)
        symbols += q
        base = torch.where(mask, torch.from_numpy(q).float() + means, base)
    reader.finish()
    return Decoded(width, height, z_symbols[0].int().numpy(), symbols, base[0].numpy())


def load_checkpoint(path: Path, profile_name: str | None) -> Codec:
    """The codec of an AEIC checkpoint, without g_s; ``BundleError`` if the file does not fit."""
    with tempfile.TemporaryDirectory() as scratch:
        tensors = keys.rename(entry(read_file(path, Path(scratch)), "state_dict_codec"), keys.official_codec_name)
        candidates = [profiles.profile(profile_name)] if profile_name else [profiles.SE, profiles.ME]
        for profile in candidates:
            missing, _, misshapen = keys.differences(tensors, keys.codec_keys(profile))
            if not missing and not misshapen:
                break
        else:
            raise BundleError(
                f"{path} is not an AEIC checkpoint: missing or different tensor {[*missing, *misshapen][0]}"
            )
        with torch.device("meta"):
            codec = Codec(profile)
        del codec.g_s
        load_codec(codec, tensors)
    return codec.eval()


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="aeic import-official", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stream", type=Path, metavar="STREAM")
    parser.add_argument("target", type=Path, metavar="OUT.npz")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the AEIC checkpoint that made the stream")
    parser.add_argument("--profile", choices=("se", "me"), help="default: what the checkpoint fits")
    parser.add_argument("--indexes", type=Path, help="npz with coded_idx, the encoder's scale indexes")
    parser.add_argument("--size", help="width x height, for a coder stream without the file's 12 bytes")
    options = parser.parse_args(argv)
    try:
        data = options.stream.read_bytes()
        stored = None
        if options.indexes:
            with np.load(options.indexes, allow_pickle=False) as file:
                stored = file["coded_idx"].astype(np.int8).ravel()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot be read ({error}): give the stream, and an npz with coded_idx") from None
    if options.size:
        try:
            width, height = (int(side) for side in options.size.split("x"))
        except ValueError:
            parser.error(f"--size {options.size}: give width x height, such as 768x512")
        data = height.to_bytes(4, "big") + width.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data
    width, height, stream = parse_file(data)
    decoded = decode(load_checkpoint(options.checkpoint, options.profile), stream, width, height, stored)
    arrays = {"z_symbols": decoded.z_symbols, "symbols": decoded.symbols, "y_hat": decoded.y_hat}
    with options.target.open("wb") as file:
        np.savez_compressed(file, **arrays, size=np.array([width, height]))
    coded = np.count_nonzero(decoded.symbols)
    print(f"{options.target}: {width} x {height}, {len(stream)} bytes, {coded} symbols other than 0")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
