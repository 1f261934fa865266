"""Reads a picture file before Pillow does: its true format, a PNG's chunks, a JPEG's scans, the size of a WebP.

The metadata of a PNG may be broken, huge or in an unusual place although every pixel is intact. Therefore only the
chunks that describe the pixels are passed on.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from aeic.picture_files.colour import MAX_PROFILE_BYTES

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
MAX_JPEG_SCANS = 64
"""Each scan of a progressive JPEG goes over the whole picture; cameras and encoders write about ten."""

MAX_JPEG_SEGMENTS = 8192
"""Of one JPEG. A file of 256 MiB whose metadata fills segments of 64 KiB has half as many."""
MAX_JPEG_EXIF_BYTES = 1 << 20
"""Pillow joins the segments of EXIF one after another. Cameras write one, of up to 64 KiB."""
MAX_JPEG_FILLER_BYTES = 1 << 16
"""Between the segments of a JPEG. Pillow reads each of them with several calls."""

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker that can end coded data: 00 and RST0 to RST7 are part of it."""
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_JPEG_KINDS = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE), "hierarchical JPEG"),
    0xF7: "JPEG-LS",
}
_APP0, _APP1, _APP2, _APP14, _APP15, _COM = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA)
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT")
_COLOUR = (b"gAMA", b"cHRM", b"sRGB", b"iCCP")
_STARTS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"\0\0\1\0": "ICO",
    b"FUJIFILMCCD-RAW": "a raw file of a camera",
    b"\x1aE\xdf\xa3": "Matroska or WebM video",
    b"\0\0\0\1\x67": "H.264 video",
    b"FLV\1": "FLV video",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "a gzip file",
}
_PAGES = (b"<!doctype html", b"<html")
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"qt  ": "QuickTime video", b"crx ": "a raw file of a camera"}
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_TS_PACKET_BYTES = 188
_NCLX = b"colrnclx"


@dataclass(frozen=True)
class Png:
    """``data``: the file with its pixels and what describes them, eXIf first. ``cicp``: ITU-T H.273 code points."""

    data: bytes
    cicp: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Jpeg:
    """``data``: the first picture of the file, to the end of its coded data, without the end marker and what follows
    it, and without metadata that does not describe the pixels.

    ``scans``: how many. ``complete``: its scans give every coefficient all of its bits. ``refined``: the last scan adds
    the lowest bit to coefficients that have been coded before, so a loss of its end is not visible. ``arithmetic``:
    coded so, and not by Huffman.
    """

    data: bytes
    scans: int
    complete: bool
    refined: bool
    arithmetic: bool


def kind(data: bytes) -> str | None:
    """What a file is that is no JPEG, PNG or WebP of 8 bits a sample, from its first bytes; ``None`` if unknown."""
    if data[4:8] == b"ftyp":
        return _iso_kind(data)
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "AVI video"
    if data.startswith(JPEG):
        return _jpeg_kind(data)
    if data[:512].lstrip().lower().startswith(_PAGES):
        return "a web page"
    for start, name in _STARTS.items():
        if data.startswith(start):
            return name
    return "MPEG-TS video" if data[:1] == data[_TS_PACKET_BYTES : _TS_PACKET_BYTES + 1] == b"G" else None


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of the canvas of a WebP; ``None`` if this is none, or malformed. Its reader takes memory for the
    canvas as soon as it opens the file."""
    form, body = data[12:16], data[20:30]
    if not data.startswith(b"RIFF") or data[8:12] != b"WEBP" or len(body) < 10:
        return None
    if form == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if form == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if form == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return None


def is_sixteen_bit_png(data: bytes) -> bool:
    """Whether this is a PNG of 16 bits a sample."""
    return data.startswith(PNG) and data[24:25] == b"\x10"


def read_jpeg(data: bytes) -> Jpeg:
    """Finds the end of the first picture and what its scans hold, and leaves out metadata. ``ValueError`` for too many
    segments, or too many bytes between them."""
    kept: list[bytes] = []
    scans, filler, place, begin, exif_bytes = 0, 0, 2, 0, 0
    refined = progressive = arithmetic = in_scan = False
    missing: dict[int, list[int]] = {}  # by component and coefficient: the bits that no scan has given; 99 for all
    for _ in range(MAX_JPEG_SEGMENTS):
        found = _JPEG_MARKER.search(data, place)
        end = found.start() if found else len(data)
        filler += 0 if in_scan else end - place
        if filler > MAX_JPEG_FILLER_BYTES:
            raise ValueError(f"it has more than {MAX_JPEG_FILLER_BYTES} bytes between its segments")
        if found is None:
            break
        if in_scan and data[end - 1] == 0xFF:  # fill bytes, with which a decoder would begin again and again
            kept.append(data[begin:end].rstrip(b"\xff"))
            begin = end
        marker, place, in_scan = data[found.end() - 1], found.end(), False
        if marker == _EOI:
            data = data[:end]
            break
        if marker in (_SOI, _TEM):
            continue
        segment = data[place + 2 : place + int.from_bytes(data[place : place + 2], "big")]
        place += 2 + len(segment)
        if _is_metadata(marker, segment) or (marker == _APP1 and exif_bytes > MAX_JPEG_EXIF_BYTES):
            kept.append(data[begin:end])
            begin = place
        elif marker == _APP1:
            exif_bytes += len(segment)
        elif marker in (*_SEQUENTIAL, *_PROGRESSIVE):
            progressive, arithmetic = marker in _PROGRESSIVE, marker in (_SEQUENTIAL[-1], _PROGRESSIVE[-1])
            missing = {number: [99] * 64 for number in segment[6::3]}
        elif marker == _SOS and segment:
            scans, in_scan = scans + 1, True
            count = segment[0]
            first, last, high, low = 0, 63, 0, 0
            if progressive and len(segment) >= 4 + 2 * count:
                first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
                high, low = bits >> 4, bits & 15
            refined = high > 0
            for number in segment[1 : 1 + 2 * count : 2]:
                if number in missing:
                    missing[number][first : last + 1] = [low] * len(missing[number][first : last + 1])
    else:
        raise ValueError(f"it has more than {MAX_JPEG_SEGMENTS} segments")
    complete = not any(any(bits) for bits in missing.values())
    whole = b"".join((*kept, data[begin:])).rstrip(b"\xff" if in_scan else b"").rstrip(b"\0")
    return Jpeg(whole, scans, complete, refined, arithmetic)


def _is_metadata(marker: int, segment: bytes) -> bool:
    """Whether a segment of a JPEG says nothing about the pixels. Pillow takes long for some of them."""
    if marker == _APP1:
        return not segment.startswith(b"Exif\0")
    if marker == _APP2:
        return not segment.startswith(b"ICC_PROFILE\0")
    return marker == _COM or (_APP2 < marker <= _APP15 and marker != _APP14)


def code_points(data: bytes) -> tuple[int, int, int, int] | None:
    """Primaries, transfer, 0 and 1 (RGB of full range) of an AVIF or HEIF file whose colr boxes agree on a description
    by ITU-T H.273; the pixels are RGB once they are decoded."""
    found: set[bytes] = set()
    place = data.find(_NCLX)
    while 0 <= place <= len(data) - 12 and len(found) < 2:
        found.add(data[place + 8 : place + 12])
        place = data.find(_NCLX, place + 1)
    if len(found) != 1:
        return None
    words = found.pop()
    return int.from_bytes(words[:2], "big"), int.from_bytes(words[2:], "big"), 0, 1


def clean_png(data: bytes) -> Png:
    """Leave out metadata, and damaged ancillary chunks. Damage to the pixels is not repaired."""
    head: list[bytes] = [data[:8]]
    rest: list[bytes] = []
    cicp: tuple[int, int, int, int] | None = None
    place, dropped = 8, False
    while place + 12 <= len(data):
        length, name = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        end = place + 12 + length
        if end > len(data):
            break
        chunk = data[place:end]
        place = end
        if name in _PIXELS:
            (head if name == b"IHDR" else rest).append(chunk)
        elif (name in _COLOUR or name in (b"eXIf", b"cICP")) and _is_sound(name, chunk):
            if name == b"cICP":
                cicp = (chunk[8], chunk[9], chunk[10], chunk[11]) if length == 4 else None
            # eXIf may stand behind the pixels; in front of them, the size is known from the head alone.
            (head if name == b"eXIf" else rest).append(chunk)
            dropped |= name in (b"eXIf", b"cICP")
        else:
            dropped = True
        if name == b"IEND":
            break
    if not dropped:
        return Png(data, cicp)
    rest = [chunk for chunk in rest if chunk[4:8] != b"cICP"]
    return Png(b"".join((*head, *rest, data[place:] if not rest or rest[-1][4:8] != b"IEND" else b"")), cicp)


def _is_sound(name: bytes, chunk: bytes) -> bool:
    if len(chunk) > MAX_PROFILE_BYTES or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        return False
    if name != b"iCCP":
        return True
    compressed = chunk[8:-4].partition(b"\0")[2][1:]
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(compressed, MAX_PROFILE_BYTES)
    except zlib.error:
        return False
    return unpacker.eof


def _iso_kind(data: bytes) -> str:
    """The name of a file of the ISO base media format: by its brand, or by those that it is compatible with."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[place : place + 4] for place in (8, *range(16, size, 4))]
    if brands[0] in (b"mif1", b"msf1") and any(_BRANDS.get(brand) == "AVIF" for brand in brands):
        return "AVIF"
    return "HEIF" if brands[0] in _HEIF else _BRANDS.get(brands[0], "MP4 video")


def _jpeg_kind(data: bytes) -> str | None:
    """The name of an unsupported kind of JPEG, from its frame header."""
    place = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        found = _JPEG_MARKER.search(data, place)
        if found is None or found.end() + 3 > len(data):
            return None
        marker, place = data[found.end() - 1], found.end()
        if marker in _JPEG_KINDS:
            return _JPEG_KINDS[marker]
        if marker in (*_SEQUENTIAL, *_PROGRESSIVE):
            return f"{data[place + 2]}-bit JPEG" if data[place + 2] != 8 else None
        if marker in (_SOS, _EOI):
            return None
        place += int.from_bytes(data[place : place + 2], "big")
    return None
