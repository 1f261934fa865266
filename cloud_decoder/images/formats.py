"""Pictures as files: the formats that are served, and smaller copies."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from PIL import Image

from aeic_service.errors import InvalidParameter
from cloud_decoder.tiling import Picture

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("image/png", {"compress_level": 1}),
    "webp": ("image/webp", {"quality": 90, "method": 2}),
    "jpeg": ("image/jpeg", {"quality": 92, "subsampling": 0}),
    "avif": ("image/avif", {"quality": 80, "speed": 8}),
}
"""Name -> (media type, options of the encoder). Only PNG is exact; the cache keeps every picture as PNG."""
OTHER_NAMES = {"jpg": "jpeg"}
MASTER = "png"
IMAGE_DESCRIPTION = 0x010E
"""The tag of EXIF."""
THREADS = max(2, os.cpu_count() or 1)
"""Pictures encoded at once: a fast device decodes them faster than one core encodes them."""


def known_format(name: str) -> str:
    """The format of that name, in any case or by an alias. ``InvalidParameter`` lists the known ones."""
    format = OTHER_NAMES.get(name.lower(), name.lower())
    if format not in FORMATS:
        raise InvalidParameter(f"unknown picture format {name[:20]!r}: choose one of {', '.join(FORMATS)}")
    return format


def media_type(format: str) -> str:
    """The media type of a format."""
    return FORMATS[known_format(format)][0]


def encode(picture: Picture, format: str, width: int | None = None, description: str = "") -> bytes:
    """A picture (H, W, 3) uint8 as a file, scaled down to ``width`` pixels if that is narrower.

    ``description`` becomes the ImageDescription of its EXIF.
    """
    format = known_format(format)
    image = Image.fromarray(picture)
    if width is not None and width < image.width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    options = dict(FORMATS[format][1])
    if description:
        exif = Image.Exif()
        exif[IMAGE_DESCRIPTION] = description
        options["exif"] = exif
    image.save(out, format.upper(), **options)
    return out.getvalue()


def sizes(picture: Picture) -> dict[str, int]:
    """Bytes of a picture as PNG (lossless) and as JPEG at quality 75, which most programs write."""
    image, found = Image.fromarray(picture), {}
    for name, how in (("png", {"compress_level": 6}), ("jpeg", {"quality": 75, "optimize": True})):
        out = io.BytesIO()
        image.save(out, name.upper(), **how)
        found[name] = out.tell()
    return found


def decode_master(data: bytes) -> Picture:
    """The picture of a cached master file. Only for files that :func:`encode` wrote: nothing is limited here."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def variant(format: str, width: int | None) -> str:
    """The cache's name for a form of a picture, like ``webpw320``."""
    format = known_format(format)
    return format if width is None else f"{format}w{width}"
