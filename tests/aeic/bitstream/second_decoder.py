"""A second decoder, written from docs/bitstream.md alone: it imports nothing of aeic.

It is slow and plain on purpose. If it and aeic disagree, the document or the program is wrong.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

GROUPS = ["abcd", "dcba", "cdab", "badc"]  # [pass][group]: the position class coded
DECODING = {"tables.npz", "hyper_synthesis.onnx", *(f"context_{i}.onnx" for i in range(4))}


class Refused(Exception):
    """``error`` and ``step`` as in section 5.2."""

    def __init__(self, step: int, error: str) -> None:
        super().__init__(f"step {step}: {error}")
        self.step, self.error = step, error


def require(holds: bool, step: int, error: str) -> None:
    if not holds:
        raise Refused(step, error)


class Stack:
    """The coder of section 7.2."""

    def __init__(self, payload: bytes) -> None:
        padded = payload + bytes(-len(payload) % 4)
        self.words = [int.from_bytes(padded[i : i + 4], "little") for i in range(0, len(padded), 4)]
        self.state = 0
        self.refill()
        self.refill()

    def refill(self) -> None:
        if self.state < 2**32 and self.words:
            self.state = self.state * 2**32 + self.words.pop()

    def symbol(self, freqs: list[int]) -> int:
        quantile, total = self.state % 2**24, 0
        for symbol, freq in enumerate(freqs):
            if quantile < total + freq:
                self.state = self.state // 2**24 * freq + quantile - total
                self.refill()
                return symbol
            total += freq
        raise AssertionError("the table does not sum to 2**24")


def rows(lengths: Any, offsets: Any, freqs: Any) -> list[tuple[int, list[int]]]:
    """(offset, frequencies) of each row."""
    ends = np.cumsum(lengths.ravel())
    return [(int(o), freqs[e - n : e].tolist()) for n, o, e in zip(lengths.ravel(), offsets.ravel(), ends, strict=True)]


def load(bundle: Path) -> dict[str, Any]:
    """bundle.json, after the digests of the files that decoding needs, and the fingerprint, have been compared."""
    manifest: dict[str, Any] = json.loads((bundle / "bundle.json").read_text())
    files, defining = manifest["files"], manifest["defines_bitstream"]
    assert manifest["format"] == 1 and set(defining) >= DECODING
    for name in DECODING:
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == files[name], name
    lines = "".join(f"{name} {files[name]}\n" for name in sorted(defining))
    assert hashlib.sha256(lines.encode()).hexdigest()[:6] == manifest["fingerprint"]
    return manifest


def statistics(data: bytes) -> list[int]:
    """Of a frame of version 2: the means of R, G and B, then the standard deviations."""
    return [int.from_bytes(data[at : at + 2], "little") for at in range(9, 21, 2)]


def measured(channel: Any) -> tuple[int, int]:
    """The mean and the standard deviation of one channel of a picture, as section 5.3 defines them."""
    values = channel.astype(np.float64) / 255
    return int(np.rint(65535 * values.mean())), int(np.rint(65535 * np.sqrt(values.var(ddof=1) + 0.00001)))


def corrected(picture: Any, numbers: list[int]) -> Any:
    """A decoded picture (H, W, 3) uint8 with the statistics of its frame."""
    result = np.empty_like(picture)
    for c in range(3):
        mean_rec, std_rec = measured(picture[:, :, c])
        values = (picture[:, :, c] / 255 - mean_rec / 65535) / (std_rec / 65535)
        values = values * (numbers[3 + c] / 65535) + numbers[c] / 65535
        result[:, :, c] = np.rint(255 * np.clip(values, 0, 1))
    return result


def decode(bundle: Path, data: bytes) -> Any:
    """y_hat (M, h, w) float32 of a frame, in the units that were coded; ``Refused`` for what is no frame of it."""
    manifest = load(bundle)
    channels, hyper_channels = manifest["latent_channels"], manifest["hyper_channels"]
    require(not data or data[0] == 0xAE, 1, "NotABitstream")
    header = 21 if data[1:] and data[1] >> 5 == 2 else 9
    require(len(data) > header, 2, "Truncated")
    packed = int.from_bytes(data[2:6], "little")
    require(data[1] >> 5 in (1, 2) and packed // 2**26 == 0, 3, "UnsupportedVersion")
    rate, width, height = data[1] % 32, packed % 2**13 + 1, packed // 2**13 % 2**13 + 1
    require(min(width, height) >= 16, 4, "Damaged")
    require(header == 9 or all(207 <= std <= 32832 for std in statistics(data)[3:]), 4, "Damaged")
    payload = data[header:]
    require(len(payload) <= 2**20, 6, "Damaged")
    require(data[6:9].hex() == manifest["fingerprint"], 7, "WrongModel")
    require(rate < len(manifest["rates"]), 8, "Damaged")
    h, w = (height + 63) // 64 * 2, (width + 63) // 64 * 2
    hz, wz = (h + 3) // 4, (w + 3) // 4
    require(len(payload) <= 4 * (channels * h * w + hyper_channels * hz * wz), 9, "Damaged")
    require(payload[-1] != 0, 10, "Damaged")
    stack = Stack(payload)
    tables = np.load(bundle / "tables.npz", allow_pickle=False)

    all_z = rows(tables["z_lengths"], tables["z_offsets"], tables["z_freqs"])
    z = np.zeros((hyper_channels, hz, wz), np.int32)
    for c in range(hyper_channels):
        offset, freqs = all_z[rate * hyper_channels + c]
        for row in range(hz):
            for column in range(wz):
                z[c, row, column] = offset + stack.symbol(freqs)

    y_rows = rows(tables["y_lengths"], tables["y_offsets"], tables["y_freqs"])
    run = lambda name, **inputs: onnxruntime.InferenceSession(str(bundle / f"{name}.onnx")).run(None, inputs)  # noqa: E731
    base = run("hyper_synthesis", z_symbols=z[None])[0][0][:, :h, :w].copy()
    symbols = np.zeros((channels, h, w), np.int16)
    for index in range(4):
        means, indexes = (output[0] for output in run(f"context_{index}", base=base[None]))
        places = []
        for quarter in range(channels // 4):
            for row in range(h):
                for column in range(w):
                    kind = "abcd"[row % 2 * 2 + column % 2]
                    places.append((GROUPS[index].index(kind) * (channels // 4) + quarter, row, column))
        for place in sorted((p for p in places if indexes[p] >= 0), key=lambda p: int(indexes[p])):  # sorted is stable
            offset, freqs = y_rows[indexes[place]]
            symbols[place] = offset + stack.symbol(freqs)
        for place in places:
            base[place] = np.float32(symbols[place]) + means[place]

    crc = zlib.crc32(z.astype("<i2").tobytes() + symbols.astype("<i2").tobytes())
    crc = zlib.crc32(bytes([rate]) + width.to_bytes(2, "little") + height.to_bytes(2, "little"), crc)
    crc = zlib.crc32(data[9:header], crc)
    crc = zlib.crc32(base.astype("<f4").tobytes(), crc)
    require(not stack.words and stack.state == (crc % 2**24 or 1), 11, "Damaged")
    return base
