"""Rounds floats to integers, and computes the check value over them. All later steps use integers.

All arithmetic is float32 and element-wise, so it is the same on every processor.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeic.profiles import HYPER_STRIDE
from aeic.tables import Rows

Floats = NDArray[np.float32]


def pad_latent(y: Floats) -> Floats:
    """Reflect y (M, h, w) to the right and bottom until both sides are multiples of 4: what h_a wants."""
    _, height, width = y.shape
    below, right = -height % HYPER_STRIDE, -width % HYPER_STRIDE
    if not below and not right:
        return y
    return np.pad(y, ((0, 0), (0, below), (0, right)), mode="reflect")


def hyper_size(height: int, width: int) -> tuple[int, int]:
    """(hz, wz) of z for y of (height, width)."""
    return -(-height // HYPER_STRIDE), -(-width // HYPER_STRIDE)


def quantise_hyper(z: Floats, medians: Floats, rows: Rows) -> NDArray[np.int32]:
    """z (Cz, hz, wz) to symbols of the same shape: half to even, clipped to the range of each channel's row."""
    symbols = np.rint(z - medians[:, None, None])
    return np.clip(symbols, rows.lowest[:, None, None], rows.highest[:, None, None]).astype(np.int32)


def quantise_residual(y: Floats, means: Floats, indexes: NDArray[np.int8], rows: Rows) -> NDArray[np.int16]:
    """``rint(y - means)``, clipped to the row of each index; 0 where the index is -1 (skipped). All of one shape.

    The encoder must set skipped elements to 0, because the decoder has no other value for them.
    """
    residual: Floats = np.rint(y - means)
    low, high = (np.append(limit, np.float32(0)) for limit in (rows.lowest, rows.highest))  # entry -1: skipped
    symbols: NDArray[np.int16] = np.clip(residual, low[indexes], high[indexes]).astype(np.int16)
    return symbols


def dequantise(symbols: NDArray[np.int16], means: Floats) -> Floats:
    """``symbols + means`` in float32, with a zero that is never negative."""
    restored: Floats = (symbols.astype(np.float32) + means) + np.float32(0)
    return restored


def check_value(
    z_symbols: NDArray[np.int32],
    y_symbols: NDArray[np.int16],
    y_hat: Floats,
    rate: int,
    width: int,
    height: int,
    colour: bytes = b"",
) -> int:
    """24 bits over everything that a decoder must have found, 1..2**24-1.

    CRC-32 of z (Cz, hz, wz) and y (M, h, w) symbols as int16, rate as a byte, width and height as u16, the bytes of the
    colour statistics if the frame has them, and y_hat (M, h, w) as float32, all little-endian, in C order; the low 24
    bits, with 0 turned into 1.
    """
    crc = zlib.crc32(_little(z_symbols, "<i2"))
    crc = zlib.crc32(_little(y_symbols, "<i2"), crc)
    crc = zlib.crc32(bytes([rate]) + width.to_bytes(2, "little") + height.to_bytes(2, "little") + colour, crc)
    crc = zlib.crc32(_little(y_hat, "<f4"), crc)
    return crc & 0xFFFFFF or 1


def digest(y_hat: Floats) -> str:
    """SHA-256 of y_hat (M, h, w) float32, little-endian: it must be the same on every machine."""
    return hashlib.sha256(_little(y_hat, "<f4")).hexdigest()


def _little(array: NDArray[Any], dtype: str) -> bytes:
    return array.astype(dtype).tobytes()
