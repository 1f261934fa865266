"""Reads the header of a picture file before Pillow does: the true format of the file, and the chunks of a PNG.

The metadata of a PNG may be broken, huge or in an unusual place although every pixel is intact. Therefore only the
chunks that describe the pixels are passed on.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from aeic.picture_files.colour import MAX_PROFILE_BYTES

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
MAX_JPEG_SCANS = 64
"""Each scan of a progressive JPEG goes over the whole picture; cameras and encoders write about ten."""

_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT")
_COLOUR = (b"gAMA", b"cHRM", b"sRGB", b"iCCP")
_STARTS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"\0\0\1\0": "ICO",
    b"\x1aE\xdf\xa3": "Matroska or WebM video",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"qt  ": "QuickTime video"}
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass(frozen=True)
class Png:
    """``data``: the file with its pixels and what describes them, eXIf first. ``cicp``: ITU-T H.273 code points."""

    data: bytes
    cicp: tuple[int, int, int, int] | None


def kind(data: bytes) -> str | None:
    """The name of an unsupported format, from the first bytes of the file; ``None`` for all others."""
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return "HEIF" if brand in _HEIF else _BRANDS.get(brand, "MP4 video")
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "AVI video"
    if data.startswith(JPEG):
        return _jpeg_kind(data)
    return next((name for start, name in _STARTS.items() if data.startswith(start)), None)


def jpeg_scans(data: bytes) -> int:
    """An upper bound on the number of scans: the marker cannot occur inside coded data, but in metadata it can."""
    return data.count(b"\xff\xda")


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


def _jpeg_kind(data: bytes) -> str | None:
    """The name of an unsupported kind of JPEG, from its frame header."""
    place = 2
    while place + 5 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in (0xC3, 0xC7, 0xCB, 0xCF):
            return "lossless JPEG"
        if marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
            return f"{data[place + 4]}-bit JPEG" if data[place + 4] != 8 else None
        if marker == 0xDA:
            return None
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
