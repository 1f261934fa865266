"""Picture files of boxes: hostile input that is stored and served as it came, and never decoded here."""

from __future__ import annotations

from aeic.errors import Unreadable
from aeic.picture_files import headers
from aeic.pixels import picture_size

MEDIA_TYPES = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}
"""What is taken, and the suffix of such a file."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""With these, and with nosniff as every answer has it, a browser takes a file for nothing but a picture, whatever else
is in it, and no other site embeds it."""


def describe(data: bytes, *, max_pixels: int) -> tuple[str, int, int]:
    """The media type of a picture file, its width and its height, from its head alone: no pixel is decoded.

    Raises what :func:`aeic.pixels.load_picture` would raise for that head: ``InputError`` and its subclasses.
    """
    media_type = _media_type(data)  # first: no reader of another format is given a byte of it
    return media_type, *picture_size(data, max_pixels=max_pixels)


def _media_type(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    kind = headers.kind(data)  # of the first bytes
    raise Unreadable(f"this is {f'{kind}, ' if kind else ''}not a JPEG, PNG or WebP file")
