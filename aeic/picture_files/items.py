"""Reads the index of an AVIF or HEIF file before its library does: what the items in it will take in memory.

Boxes as in ISO/IEC 14496-12 and ISO/IEC 23008-12, sequence headers as in the AV1 specification, section 5.5. Neither
library limits these itself: libavif decodes a frame of any size and scales it to the one that the file claims, and
pillow_heif copies the metadata for each picture in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MAX_ITEMS = 4096
MAX_BOXES = 8192
"""One after another."""
_CODED = (b"hvc1", b"hev1", b"av01", b"avc1", b"vvc1", b"jpeg", b"j2k1", b"unci", b"grid", b"iovl", b"iden")
"""Types of items that are pictures, or parts of them. All others are metadata."""
_SHARED_BYTES = 16 << 20
"""Items may have the same bytes, as equal tiles do, as long as all together have no more than this, or than two files.
"""
_SEQUENCE_HEADER = 1
_MAX_OBUS = 1 << 14
"""Of all items together."""


@dataclass(frozen=True)
class Item:
    """``hidden``: it is no picture of its own. ``data``: its bytes, in parts that may overlap."""

    kind: bytes
    hidden: bool
    data: list[memoryview]


class _Reader:
    """Reads big-endian numbers one after another. ``ValueError`` behind the end."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._bit = data, 0

    def bits(self, count: int) -> int:
        begin, self._bit = self._bit, self._bit + count
        if self._bit > 8 * len(self._data):
            raise ValueError("a box ends too early")
        last = -(-self._bit // 8)
        return int.from_bytes(self._data[begin // 8 : last], "big") >> (8 * last - self._bit) & ((1 << count) - 1)

    def bytes(self, count: int) -> int:
        return self.bits(8 * count)


def metadata_bytes(data: bytes) -> int:
    """What pillow_heif may copy of the metadata of a file: all of it, for each picture that is not hidden."""
    index, items = _items(data)
    metadata = sum(len(part) for item in items for part in item.data if item.kind not in _CODED)
    return sum(not item.hidden for item in items) * (index + metadata)


def av1_pixels(data: bytes) -> int:
    """The pixels of all AV1 pictures in a file together, as their own headers say."""
    left = iter(range(_MAX_OBUS))
    return sum(_frame_pixels(item, left) for item in _items(data)[1] if item.kind == b"av01")


def has_tracks(data: bytes) -> bool:
    """Whether the file holds a sequence of pictures: a moov box."""
    return any(kind == b"moov" for kind, _ in _boxes(memoryview(data)))


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    place = 0
    for _ in range(MAX_BOXES):
        if place + 8 > len(data):
            return
        size, kind, head = int.from_bytes(data[place : place + 4], "big"), bytes(data[place + 4 : place + 8]), 8
        if size == 1:
            size, head = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        elif size == 0:
            size = len(data) - place
        if size < head:
            raise ValueError("a box is smaller than its head")
        yield kind, data[place + head : place + size]
        place += size
    raise ValueError(f"it has more than {MAX_BOXES} boxes")


def _only(boxes: list[tuple[bytes, memoryview]], kind: bytes) -> memoryview:
    """The one box of that kind, empty if there is none."""
    found = [content for each, content in boxes if each == kind]
    if len(found) > 1:
        raise ValueError(f"it has {len(found)} boxes {kind.decode()}")
    return found[0] if found else memoryview(b"")


def _items(data: bytes) -> tuple[int, list[Item]]:
    """The bytes of the index, and the items of the file."""
    index = _only(list(_boxes(memoryview(data))), b"meta")
    boxes = list(_boxes(index[4:]))
    places = _places(_only(boxes, b"iloc"), memoryview(data), _only(boxes, b"idat"))
    information = _only(boxes, b"iinf")
    items = []
    for kind, entry in _boxes(information[8 if any(information[:1]) else 6 :]):
        if kind != b"infe":
            continue
        reader = _Reader(entry)
        version, flags = reader.bytes(1), reader.bytes(3)
        number, _ = reader.bytes(4 if version == 3 else 2), reader.bytes(2)
        name = reader.bytes(4).to_bytes(4, "big") if version >= 2 else b""
        items.append(Item(name, version >= 2 and bool(flags & 1), places.get(number, [])))
        if len(items) > MAX_ITEMS:
            raise ValueError(f"it has more than {MAX_ITEMS} items")
    return len(index), items


def _places(location: memoryview, file: memoryview, inside: memoryview) -> dict[int, list[memoryview]]:
    """The data of each item, by its number."""
    if not location:
        return {}
    reader = _Reader(location)
    version, _ = reader.bytes(1), reader.bytes(3)
    offset_size, length_size, base_size, index_size = (reader.bits(4) for _ in range(4))
    wide = 4 if version == 2 else 2
    places: dict[int, list[memoryview]] = {}
    extents, total = 0, 0
    for _ in range(reader.bytes(wide)):
        number = reader.bytes(wide)
        source = (file, inside)[reader.bytes(2) & 1] if version else file
        reader.bytes(2)
        base, parts = reader.bytes(base_size), places.setdefault(number, [])
        for _ in range(reader.bytes(2)):
            reader.bytes(index_size if version else 0)
            begin, length = base + reader.bytes(offset_size), reader.bytes(length_size)
            parts.append(source[begin : begin + length] if length else source[begin:])
            extents, total = extents + 1, total + len(parts[-1])
            if extents > 2 * MAX_ITEMS or total > max(2 * len(file), _SHARED_BYTES):
                raise ValueError("its items have too many parts")
    return places


def _frame_pixels(item: Item, left: Iterator[int]) -> int:
    """Width times height of the largest frame that an AV1 item may hold. ``ValueError`` without a sequence header, or
    when it has more than the OBUs that are ``left``."""
    data = item.data[0] if len(item.data) == 1 else memoryview(b"".join(item.data))
    place, most = 0, 0
    for _ in left:
        if place >= len(data):
            break
        reader = _Reader(data[place : place + 16])
        _, kind, extended, sized, _ = (reader.bits(count) for count in (1, 4, 1, 1, 1))
        head = 2 if extended else 1
        reader.bytes(head - 1)
        size = len(data) - place - head
        if sized:
            size = shift = 0
            more = True
            while more and shift < 56:
                byte = reader.bytes(1)
                size, shift, more, head = size | (byte & 127) << shift, shift + 7, byte > 127, head + 1
        if kind == _SEQUENCE_HEADER:
            most = max(most, _sequence_pixels(_Reader(data[place + head : place + head + size])))
        place += head + size
    else:
        raise ValueError(f"its pictures have more than {_MAX_OBUS} parts")
    if not most:
        raise ValueError("a picture has no sequence header")
    return most


def _sequence_pixels(reader: _Reader) -> int:
    reader.bits(4)  # seq_profile, still_picture
    if reader.bits(1):  # reduced_still_picture_header
        reader.bits(5)
    else:
        if reader.bits(1):
            raise ValueError("a picture has the timing of a video")
        delays = reader.bits(1)
        for _ in range(reader.bits(5) + 1):
            reader.bits(12)
            if reader.bits(5) > 7:  # seq_level_idx
                reader.bits(1)
            if delays and reader.bits(1):
                reader.bits(4)
    across, down = reader.bits(4) + 1, reader.bits(4) + 1
    return (reader.bits(across) + 1) * (reader.bits(down) + 1)
