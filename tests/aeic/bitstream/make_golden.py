"""Makes tests/golden: ``python -m tests.aeic.bitstream.make_golden``. docs/bitstream.md section 9 describes the files.

It writes two small bundles, frames of each, the latents that each frame was made from, the y_hat that a decoder must
return, and frames that a decoder must refuse. It never changes a good frame that is there: it only adds what is
missing, and fails if one that is there would come out differently. Frames to refuse are written anew, since a later
decoder may accept a version that an earlier one refuses.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from aeic import rans
from aeic.bitstream import HEADER_BYTES, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, Frame
from aeic.bundle import Bundle
from aeic.colour_statistics import ColourStatistics
from aeic.latent_codec import LatentCodec
from tests.support.models.extreme_bundle import write_extreme_bundle
from tests.support.models.tiny_bundle import write_tiny_bundle

GOLDEN = Path(__file__).parents[2] / "golden"
TINY, EXTREME = "bundle", "bundle-extreme"
BUNDLE_SEED = 2026
LISTING_VERSION = 1
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Stream:
    """One golden frame. ``spread`` scales its made-up latents, ``seed`` makes them. ``colour``: version 2."""

    name: str
    width: int
    height: int
    rate: int
    spread: float
    seed: int
    bundle: str = TINY
    colour: bool = False


STREAMS = [
    Stream("smallest", 16, 16, 0, 4.0, 0),
    Stream("all-zero", 64, 64, 0, 0.0, 1),
    Stream("odd-sides", 333, 77, 1, 8.0, 2),
    Stream("wide", 640, 64, 0, 16.0, 3),
    Stream("tall", 65, 449, 1, 2.0, 4),
    Stream("clipped", 128, 128, 1, 900.0, 5),
    Stream("photo-size", 768, 512, 1, 6.0, 6),
    # The seeds and sizes of the next two were searched for: their CRCs have the low 24 bits 0, and less than 256.
    Stream("check-zero", 56, 23, 1, 1.0, 18674),
    Stream("one-byte", 91, 84, 16, 0.0, 9, EXTREME),
    Stream("one-word", 64, 64, 1, 0.0, 10, EXTREME),
    Stream("two-words", 64, 64, 3, 0.0, 11, EXTREME),
    Stream("certain", 64, 64, 2, 64.0, 12, EXTREME),
    Stream("extreme-tables", 130, 70, 31, 150.0, 21, EXTREME),
    Stream("colour-statistics", 40, 24, 1, 4.0, 22, colour=True),
]


def latents(width: int, height: int, spread: float, seed: int, channels: int = 8) -> Floats:
    """(channels, h, w) float32 in quarter steps: partly smooth, partly noise."""
    rng = np.random.default_rng(seed)
    shape = (channels, *Frame(width, height, 0, "000000", b"").latent_size)
    smooth = np.cumsum(rng.integers(-4, 5, shape), axis=2) + np.cumsum(rng.integers(-4, 5, shape), axis=1)
    y: Floats = (np.rint((smooth / 4 + rng.normal(size=shape)) * spread) / 4).astype(np.float32)
    return y


def pictures(width: int, height: int, seed: int) -> dict[str, NDArray[np.uint8]]:
    """A picture, and one with another tint and less contrast, of which many values are clipped by the correction."""
    rng = np.random.default_rng(seed)
    ramps = np.mgrid[:height, :width].sum(0)[:, :, None] * np.array([7, 3, 0]) % 256
    picture = np.clip(ramps + rng.integers(-20, 20, (height, width, 3)), 0, 255).astype(np.uint8)
    decoded = np.rint(picture * np.array([0.5, 0.8, 1.0]) + np.array([90, 10, 0])).clip(0, 255).astype(np.uint8)
    corrected = decoded.copy()
    ColourStatistics.of(picture).correct(corrected)
    return {"picture": picture, "decoded": decoded, "corrected": corrected}


@dataclass(frozen=True)
class Refusal:
    """A frame that a decoder with the bundle ``bundle`` must refuse at ``step`` of the specification's section 5.2.

    ``fill``: bytes 0x01 that follow ``data``, for what would be too large to keep as a file.
    """

    name: str
    step: int
    error: str
    why: str
    data: bytes
    fill: int = 0


def refusals(codec: LatentCodec, streams: dict[str, bytes]) -> Iterator[Refusal]:
    """Every refusal by itself, then pairs of faults that show which comes first. ``streams``: good frames by name."""
    good = streams["smallest"]
    head, payload, own = bytearray(good[:HEADER_BYTES]), good[HEADER_BYTES:], good[6:9]
    foreign = bytes(byte ^ 0xFF for byte in own)

    def frame(
        rate: int = 0, width: int = 16, height: int = 16, version: int = 1, flags: int = 0, mark: bytes = own
    ) -> bytes:
        packed = width - 1 | height - 1 << 13 | flags << 26
        return bytes([0xAE, version << 5 | rate]) + packed.to_bytes(4, "little") + mark

    room = 4 * (codec.bundle.channels * 4 + codec.bundle.hyper_channels)  # 16x16: y is 2x2, z is 1x1
    yield Refusal("other-magic", 1, "NotABitstream", "byte 0 is 0x89", b"\x89" + good[1:])
    yield Refusal("other-magic-short", 1, "NotABitstream", "one byte, 0x00", b"\0")
    yield Refusal("empty", 2, "Truncated", "0 bytes", b"")
    yield Refusal("magic-only", 2, "Truncated", "1 byte", good[:1])
    yield Refusal("header-only", 2, "Truncated", "9 bytes", bytes(head))
    yield Refusal("short-version-2", 2, "Truncated", "8 bytes of version 2", frame(version=2)[:8])
    coloured = streams["colour-statistics"]
    yield Refusal("header-only-2", 2, "Truncated", "21 bytes of version 2", coloured[:MAX_HEADER_BYTES])
    yield Refusal("version-0", 3, "UnsupportedVersion", "version 0", frame(version=0) + payload)
    yield Refusal("version-3", 3, "UnsupportedVersion", "version 3", frame(version=3) + payload)
    yield Refusal("short-version-3", 3, "UnsupportedVersion", "10 bytes of version 3", frame(version=3) + b"\1")
    yield Refusal("flag-0", 3, "UnsupportedVersion", "bit 26 is set", frame(flags=1) + payload)
    yield Refusal("flag-5", 3, "UnsupportedVersion", "bit 31 is set", frame(flags=32) + payload)
    later = frame(0, 1, 16, 3, 0, foreign)
    yield Refusal("version-3-narrow-foreign", 3, "UnsupportedVersion", "version 3, width 1, foreign", later + payload)
    flagged = frame(version=2, flags=1) + coloured[HEADER_BYTES:]
    yield Refusal("version-2-flag-0", 3, "UnsupportedVersion", "bit 26 is set in version 2", flagged)
    yield Refusal("width-15", 4, "Damaged", "width 15", frame(width=15) + payload)
    yield Refusal("height-1", 4, "Damaged", "height 1", frame(height=1) + payload)
    yield Refusal("width-15-foreign", 4, "Damaged", "width 15, foreign", frame(width=15, mark=foreign) + payload)
    for std in (0, 206, 32833, 65535):
        wrong = coloured[:19] + std.to_bytes(2, "little") + coloured[MAX_HEADER_BYTES:]
        yield Refusal(f"std-{std}", 4, "Damaged", f"the standard deviation of B is {std}", wrong)
    wrong = coloured[:6] + foreign + coloured[9:15] + b"\0\0" + coloured[17:]
    yield Refusal("std-0-foreign", 4, "Damaged", "the standard deviation of R is 0, foreign", wrong)
    large = frame(width=8192, height=8192)
    yield Refusal("over-1-mib", 6, "Damaged", "1,048,577 bytes of payload", large, MAX_PAYLOAD_BYTES + 1)
    large = frame(width=8192, height=8192, mark=foreign)
    yield Refusal("over-1-mib-foreign", 6, "Damaged", "the same, foreign", large, MAX_PAYLOAD_BYTES + 1)
    yield Refusal("foreign", 7, "WrongModel", "another fingerprint", frame(mark=foreign) + payload)
    yield Refusal("foreign-rate-31", 7, "WrongModel", "foreign, rate 31", frame(31, mark=foreign) + payload)
    yield Refusal("foreign-too-long", 7, "WrongModel", "foreign, too long for its sizes", frame(mark=foreign), room + 1)
    yield Refusal("foreign-last-0", 7, "WrongModel", "foreign, last byte 0", frame(mark=foreign) + payload + b"\0")
    yield Refusal("rate-2", 8, "Damaged", "rate 2 of a bundle with two", frame(rate=2) + payload)
    yield Refusal("too-long", 9, "Damaged", f"{room + 1} bytes of payload for 36 elements", frame(), room + 1)
    yield Refusal("last-0", 10, "Damaged", "the last byte is 0", good + b"\0")
    yield Refusal("only-0", 10, "Damaged", "the only byte of payload is 0", frame() + b"\0")
    yield Refusal("as-long-as-allowed", 11, "Damaged", f"{room} bytes of payload, no frame", frame(), room)
    yield Refusal("last-byte-lost", 11, "Damaged", "cut short by a byte", good[:-1])
    yield Refusal("word-lost", 11, "Damaged", "cut short by the last word", good[:-3])
    yield Refusal("first-word-lost", 11, "Damaged", "the first word is missing", bytes(head) + payload[4:])
    yield Refusal("word-added", 11, "Damaged", "a word before the first", bytes(head) + b"\1\0\0\0" + payload)
    flipped = bytearray(good)
    flipped[HEADER_BYTES] ^= 1
    yield Refusal("bit-flipped", 11, "Damaged", "bit 0 of byte 9 is inverted", bytes(flipped))
    yield Refusal("other-width", 11, "Damaged", "width 17 instead of 16", frame(width=17) + payload)
    yield Refusal("other-rate", 11, "Damaged", "rate 1 instead of 0", frame(rate=1) + payload)
    mean = coloured[:9] + bytes([coloured[9] ^ 1]) + coloured[10:]
    yield Refusal("mean-changed", 11, "Damaged", "bit 0 of the mean of R is inverted", mean)
    std_changed = coloured[:17] + bytes([coloured[17] ^ 1]) + coloured[18:]
    yield Refusal("std-changed", 11, "Damaged", "bit 0 of the standard deviation of G is inverted", std_changed)
    as_first = coloured[:1] + bytes([coloured[1] ^ 0x60]) + coloured[2:]
    yield Refusal("version-1-of-2", 11, "Damaged", "version 2 changed to 1", as_first)
    added = frame(version=2) + coloured[HEADER_BYTES:MAX_HEADER_BYTES] + payload
    yield Refusal("statistics-added", 11, "Damaged", "version 1 with the statistics of another frame", added)
    kept = _coded_as_zero(codec, streams["check-zero"])
    yield Refusal("check-zero-kept", 11, "Damaged", "a check value of 0 written as 0, not as 1", kept)


def _coded_as_zero(codec: LatentCodec, data: bytes) -> bytes:
    """The frame of an encoder that forgets to replace a check value of 0: same symbols, start state 0."""
    runs: list[rans.Run] = []
    read = rans.Decoder.read

    def noting(self: rans.Decoder, ids: rans.Ints, rows: Any) -> NDArray[np.int32]:
        values = read(self, ids, rows)
        runs.append((values, ids, rows))
        return values

    with mock.patch.object(rans.Decoder, "read", noting):
        codec.decode(data)
    return data[:HEADER_BYTES] + rans._encode_plain(runs, 0).astype("<u4").tobytes().rstrip(b"\0")


def make() -> int:
    """Write what is missing; returns the exit code."""
    listing = GOLDEN / "golden.json"
    known = json.loads(listing.read_text()) if listing.exists() else {"version": LISTING_VERSION}
    if known["version"] != LISTING_VERSION:
        print(f"tests/golden is of version {known['version']}: move it away first", file=sys.stderr)
        return 1
    for name, write in ((TINY, lambda path: write_tiny_bundle(path, BUNDLE_SEED)), (EXTREME, write_extreme_bundle)):
        if not (GOLDEN / name).exists():
            write(GOLDEN / name)
    codecs = {name: LatentCodec(Bundle.load(GOLDEN / name), threads=1) for name in (TINY, EXTREME)}
    entries: list[dict[str, Any]] = []
    frames: dict[str, bytes] = {}
    differs: list[str] = []
    for stream in STREAMS:
        codec = codecs[stream.bundle]
        y = latents(stream.width, stream.height, stream.spread, stream.seed, codec.bundle.channels)
        shown = pictures(stream.width, stream.height, stream.seed) if stream.colour else {}
        colour = ColourStatistics.of(shown["picture"]) if shown else None
        data = codec.encode(y, stream.rate, stream.width, stream.height, colour)
        path = GOLDEN / f"{stream.name}.aeic"
        frames[stream.name] = data
        if path.exists() and path.read_bytes() != data:
            differs.append(stream.name)
        decoded = codec.decode_symbols(data)
        if not path.exists():
            path.write_bytes(data)
            np.savez_compressed(
                GOLDEN / f"{stream.name}.npz", y=y, symbols=decoded.symbols, y_hat=decoded.y_hat, **shown
            )
        entries.append(
            {
                "name": stream.name,
                "bundle": stream.bundle,
                "version": decoded.frame.version,
                "width": stream.width,
                "height": stream.height,
                "rate": stream.rate,
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "latents": decoded.digest,
            }
            | ({"statistics": [*colour.means, *colour.stds]} if colour else {})
        )
    if differs:
        print(f"these frames exist and would change: {', '.join(differs)}: a new version is needed", file=sys.stderr)
        return 1
    listing.write_text(json.dumps({"version": LISTING_VERSION, "streams": entries}, indent=1) + "\n")
    refused = _write_refused(codecs[TINY], frames)
    print(f"{len(entries)} streams, {sum(entry['bytes'] for entry in entries)} bytes; {refused} frames to refuse")
    return 0


def _write_refused(codec: LatentCodec, frames: dict[str, bytes]) -> int:
    folder = GOLDEN / "refused"
    folder.mkdir(exist_ok=True)
    entries = []
    for refusal in refusals(codec, frames):
        (folder / f"{refusal.name}.aeic").write_bytes(refusal.data)
        entry: dict[str, Any] = {"name": refusal.name, "bundle": TINY, "step": refusal.step, "error": refusal.error}
        entries.append(entry | {"fill": refusal.fill, "why": refusal.why})
    (folder / "refused.json").write_text(json.dumps({"version": LISTING_VERSION, "frames": entries}, indent=1) + "\n")
    return len(entries)


if __name__ == "__main__":
    sys.exit(make())
