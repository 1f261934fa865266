"""Pictures as files: some of every kind that the edge takes, and some that it refuses."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def picture(
    width: int = 96, height: int = 64, *, form: str = "JPEG", mode: str = "RGB", seed: int = 0, **save: Any
) -> bytes:
    """A smooth random picture as a file."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(out, form, **save)
    return out.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def animated(form: str) -> bytes:
    """Three frames in one file."""
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    out = io.BytesIO()
    frames[0].save(out, form, save_all=True, append_images=frames[1:])
    return out.getvalue()


def gif() -> bytes:
    """A picture in a format that the edge does not take."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "GIF")
    return out.getvalue()


GOOD = {
    "png": picture(form="PNG"),
    "webp": picture(form="WEBP"),
    "webp lossless": picture(form="WEBP", lossless=True),
    "grey": picture(mode="L"),
    "palette": picture(form="PNG", mode="P"),
    "bilevel": picture(form="PNG", mode="1"),
    "cmyk": picture(mode="CMYK"),
    "transparent": picture(form="PNG", mode="RGBA"),
    "grey with alpha": picture(form="PNG", mode="LA"),
    "progressive": picture(progressive=True),
    "smallest": picture(16, 16),
    "one row of blocks": picture(16, 700),
}
"""Pictures that the edge encodes."""

BAD = {
    "empty": (b"", 422, "empty"),
    "text": (b"Dear edge, please find enclosed no picture. " * 20, 422, "jpeg"),
    "truncated jpeg": (picture(640, 480)[:2000], 422, "cut short"),
    "jpeg header only": (picture()[:30], 422, "picture"),
    "truncated png": (picture(form="PNG")[:-200], 422, "cut short"),
    "60,000 x 60,000": (claims(60_000, 60_000), 413, "pixels"),
    "9,000 x 20": (claims(9_000, 20), 413, "8192"),
    "bomb within the limits": (claims(8_000, 8_000), 422, "cut short"),
    "animated png": (animated("PNG"), 422, "animated"),
    "animated webp": (animated("WEBP"), 422, "animated"),
    "gif": (gif(), 415, "JPEG, PNG, WebP or AVIF"),
    "bmp": (b"BM" + bytes(100), 415, "JPEG, PNG, WebP or AVIF"),
    "pdf": (b"%PDF-1.7 \n", 415, "JPEG, PNG, WebP or AVIF"),
    "too small": (picture(15, 64), 422, "16"),
}
"""Uploads that the edge refuses, each with the status and a word of the detail."""
