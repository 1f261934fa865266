"""A frame in messages of a fixed size, for radios and modems: LoRa (222, 255 bytes), Iridium SBD (340 bytes), serial.

docs/packets.md specifies the packet::

    0xAD | CRC-32 of the frame, u32 | length of the frame, u16 | offset, u16 | part of the frame | CRC-16, u16

Numbers are little-endian. Packets may arrive in any order, twice, damaged, mixed with those of other frames, or not at
all, and those of one frame may have several sizes. There is no acknowledgement here: :meth:`Joiner.missing` says what
to ask for again.
"""

from __future__ import annotations

import binascii
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from aeic.errors import Damaged, NotABitstream, TooLarge

MAGIC = 0xAD
_HEADER = struct.Struct("<BIHH")
_CHECK = struct.Struct("<H")
OVERHEAD_BYTES = _HEADER.size + _CHECK.size
"""What each packet has besides its part of the frame."""
LEAST_SIZE = OVERHEAD_BYTES + 1
MAX_FRAME_BYTES = (1 << 16) - 1


@dataclass(frozen=True)
class Packet:
    """``frame_crc`` and ``frame_bytes`` identify the frame; ``part`` stands in it at ``offset``."""

    frame_crc: int
    frame_bytes: int
    offset: int
    part: bytes

    def to_bytes(self, size: int = 0) -> bytes:
        """The packet, filled up with zeros to ``size`` bytes."""
        start = _HEADER.pack(MAGIC, self.frame_crc, self.frame_bytes, self.offset) + self.part
        start = start.ljust(size - _CHECK.size, b"\0")
        return start + _CHECK.pack(binascii.crc_hqx(start, 0xFFFF))

    @classmethod
    def parse(cls, data: bytes) -> Packet:
        """``NotABitstream`` for other bytes, ``Damaged`` where the check value or the numbers do not hold."""
        if not data or data[0] != MAGIC:
            raise NotABitstream(f"this is not a packet of a frame: its first byte is not 0x{MAGIC:02x}")
        if len(data) < LEAST_SIZE or binascii.crc_hqx(data[:-2], 0xFFFF) != _CHECK.unpack(data[-2:])[0]:
            raise Damaged("the packet's check value does not match: ask for it again")
        _, crc, length, offset = _HEADER.unpack_from(data)
        if not offset < length:
            raise Damaged(f"the packet is at byte {offset} of {length}")
        return cls(crc, length, offset, data[_HEADER.size : -_CHECK.size][: length - offset])


def split(frame: bytes, size: int, *, pad: bool = False, offset: int = 0, end: int | None = None) -> list[bytes]:
    """The frame in packets of at most ``size`` bytes; with ``pad`` all have exactly that size.

    ``offset`` and ``end`` send a part of the frame again. ``ValueError`` for a size under ``LEAST_SIZE``,
    ``NotABitstream`` for an empty frame, ``TooLarge`` for one over ``MAX_FRAME_BYTES``.
    """
    if size < LEAST_SIZE:
        raise ValueError(f"a packet has {LEAST_SIZE} bytes or more, not {size}")
    if not frame:
        raise NotABitstream("the frame is empty")
    if len(frame) > MAX_FRAME_BYTES:
        raise TooLarge(
            f"the frame has {len(frame)} bytes, and packets hold one of {MAX_FRAME_BYTES}: encode it with max_bytes"
        )
    crc, last = zlib.crc32(frame), len(frame) if end is None else min(end, len(frame))
    step = size - OVERHEAD_BYTES
    return [
        Packet(crc, len(frame), at, frame[at : min(at + step, last)]).to_bytes(size if pad else 0)
        for at in range(offset, last, step)
    ]


class _Partial:
    """A frame of which some bytes are there."""

    def __init__(self, size: int) -> None:
        self.data, self.there = bytearray(size), bytearray(size)

    def gaps(self) -> Iterator[tuple[int, int]]:
        at = self.there.find(0)
        while at >= 0:
            end = self.there.find(1, at)
            yield at, len(self.there) if end < 0 else end
            at = -1 if end < 0 else self.there.find(0, end)


class Joiner:
    """Collects packets until frames are whole. It keeps up to ``most`` frames in part and forgets the one that has
    waited longest without a packet; ``damaged`` counts what was no whole packet, or did not add up."""

    def __init__(self, most: int = 64) -> None:
        self.damaged = 0
        self._most = most
        self._partial: OrderedDict[tuple[int, int], _Partial] = OrderedDict()
        self._whole: OrderedDict[tuple[int, int], None] = OrderedDict()

    def add(self, data: bytes) -> bytes | None:
        """Take a packet. Returns the frame that it completes; each frame is returned once."""
        try:
            packet = Packet.parse(data)
        except (NotABitstream, Damaged):
            self.damaged += 1
            return None
        key = packet.frame_crc, packet.frame_bytes
        if key in self._whole:
            return None
        partial = self._partial.pop(key, None) or _Partial(packet.frame_bytes)
        self._partial[key] = partial
        while len(self._partial) > self._most:
            self._partial.popitem(last=False)
        place = slice(packet.offset, packet.offset + len(packet.part))
        partial.data[place] = packet.part
        partial.there[place] = b"\1" * len(packet.part)
        if not all(partial.there):
            return None
        del self._partial[key]
        frame = bytes(partial.data)
        if zlib.crc32(frame) != packet.frame_crc:
            self.damaged += 1
            return None
        self._whole[key] = None
        while len(self._whole) > self._most:
            self._whole.popitem(last=False)
        return frame

    def missing(self) -> dict[int, list[tuple[int, int]]]:
        """For each frame in part, by its CRC-32: the bytes that are missing, as (begin, end)."""
        return {crc: list(partial.gaps()) for (crc, _), partial in self._partial.items()}
