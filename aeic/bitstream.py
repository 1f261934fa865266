"""The frame: a header of 9 or 21 bytes, then the bytes of the entropy coder, which this module does not interpret.

::

    byte 0       1                2 .. 5 (little-endian u32)                     6 .. 8        9 ..
    +------+---------------+-------------------------------------------------+-------------+---------+
    | 0xAE | version  rate | width - 1    height - 1    flags                | fingerprint | payload |
    |      | 3 bits   5    | bits 0..12   bits 13..25   bits 26..31 (zero)   | of bundle   |         |
    +------+---------------+-------------------------------------------------+-------------+---------+

That is version 1. In version 2, the colour statistics of the picture (colour_statistics.py) are in bytes 9 .. 20, and
the payload follows.

The check value takes no extra bytes, because it is the final state of the entropy coder (docs/bitstream.md). Every
limit is checked before memory is allocated for the frame.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass
from typing import Any

from aeic.colour_statistics import STATISTICS_BYTES, ColourStatistics
from aeic.errors import BitstreamError, Damaged, NotABitstream, TooLarge, Truncated, UnsupportedVersion
from aeic.profiles import LATENT_STRIDE, PICTURE_MULTIPLE

MAGIC = 0xAE
VERSION = 1
STATISTICS_VERSION = 2
"""That of a frame with colour statistics."""
HEADER_BYTES = 9
"""Of version 1."""
MAX_HEADER_BYTES = HEADER_BYTES + STATISTICS_BYTES
MIN_SIDE, MAX_SIDE = 16, 8192
MAX_PAYLOAD_BYTES = 1 << 20
MAX_RATES = 32
_HEADER = struct.Struct("<BBI3s")


def header_bytes(start: bytes) -> int:
    """The length of the header of a frame, by its first two bytes; that of version 1 if there are fewer."""
    return MAX_HEADER_BYTES if len(start) > 1 and start[1] >> 5 == STATISTICS_VERSION else HEADER_BYTES


@dataclass(frozen=True)
class FrameInfo:
    """The contents of the header: sizes in bytes, ``bpp`` of the whole frame."""

    version: int
    width: int
    height: int
    rate: int
    fingerprint: str
    bytes: int
    payload_bytes: int
    bpp: float

    def as_dict(self) -> dict[str, Any]:
        """The same as a plain dictionary, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Frame:
    """One coded picture. ``width`` and ``height`` in pixels, ``rate`` a rate number, ``fingerprint`` six hex digits.

    With ``colour``, the statistics of the picture that was coded, the frame has version 2.
    """

    width: int
    height: int
    rate: int
    fingerprint: str
    payload: bytes
    colour: ColourStatistics | None = None

    def __post_init__(self) -> None:
        """``TooLarge`` or ``ValueError`` for numbers that the header cannot hold."""
        for name, side in (("width", self.width), ("height", self.height)):
            if side > MAX_SIDE:
                raise TooLarge(f"{name} {side} is over {MAX_SIDE}: scale the picture down or cut it")
            if side < MIN_SIDE:
                raise ValueError(f"{name} {side} is under {MIN_SIDE}")
        if not 0 <= self.rate < MAX_RATES or len(bytes.fromhex(self.fingerprint)) != 3:
            raise ValueError(f"rate {self.rate} or fingerprint {self.fingerprint!r} does not fit the header")

    @classmethod
    def parse(
        cls, data: bytes, max_payload_bytes: int = MAX_PAYLOAD_BYTES, max_pixels: int = MAX_SIDE * MAX_SIDE
    ) -> Frame:
        """Read a frame's header. The payload is not read.

        ``NotABitstream``, ``Truncated``, ``UnsupportedVersion``, or ``Damaged`` for a header that no encoder writes;
        ``BitstreamError`` itself for a picture of more than ``max_pixels``.
        """
        data = bytes(data)
        if data and data[0] != MAGIC:
            raise NotABitstream(
                f"this starts with byte 0x{data[0]:02x}, an AEIC frame with 0x{MAGIC:02x}: give a .aeic file"
            )
        header = header_bytes(data)
        if len(data) <= header:
            raise Truncated(f"{len(data)} bytes are too few for a frame: fetch it again in full")
        _, kind, packed, fingerprint = _HEADER.unpack_from(data)
        version, flags = kind >> 5, packed >> 26
        if version not in (VERSION, STATISTICS_VERSION) or flags:
            raise UnsupportedVersion(
                f"frame version {version}, flags {flags}: this program reads versions {VERSION} and"
                f" {STATISTICS_VERSION} without flags, update it"
            )
        width, height = (packed & 0x1FFF) + 1, (packed >> 13 & 0x1FFF) + 1
        if min(width, height) < MIN_SIDE:
            raise Damaged(f"the header says {width}x{height}, under {MIN_SIDE} per side: fetch the frame again")
        colour = None
        if version == STATISTICS_VERSION:
            try:
                colour = ColourStatistics.unpack(data[HEADER_BYTES:MAX_HEADER_BYTES])
            except ValueError as error:
                raise Damaged(f"the colour statistics are wrong ({error}): fetch the frame again") from None
        if width * height > max_pixels:
            raise BitstreamError(
                f"the frame is {width}x{height}: this decoder takes at most {max_pixels} pixels, raise it"
            )
        size = len(data) - header
        if size > max_payload_bytes:
            raise Damaged(
                f"{size} bytes of payload are over the limit of {max_payload_bytes}: this is not an AEIC frame"
            )
        return cls(width, height, kind & 0x1F, fingerprint.hex(), data[header:], colour)

    def to_bytes(self) -> bytes:
        """The whole frame."""
        packed = self.width - 1 | self.height - 1 << 13
        header = _HEADER.pack(MAGIC, self.version << 5 | self.rate, packed, bytes.fromhex(self.fingerprint))
        return header + self.packed_colour + self.payload

    @property
    def version(self) -> int:
        """1, or 2 with colour statistics."""
        return VERSION if self.colour is None else STATISTICS_VERSION

    @property
    def packed_colour(self) -> bytes:
        """The colour statistics as the header has them; empty in version 1."""
        return b"" if self.colour is None else self.colour.pack()

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the padded picture: the next multiples of 64."""
        height, width = (-(-side // PICTURE_MULTIPLE) * PICTURE_MULTIPLE for side in (self.height, self.width))
        return height, width

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of y."""
        height, width = self.padded_size
        return height // LATENT_STRIDE, width // LATENT_STRIDE

    @property
    def info(self) -> FrameInfo:
        """The header and the sizes, for people."""
        size = HEADER_BYTES + len(self.packed_colour) + len(self.payload)
        bpp = 8 * size / (self.width * self.height)
        return FrameInfo(
            self.version, self.width, self.height, self.rate, self.fingerprint, size, len(self.payload), bpp
        )
