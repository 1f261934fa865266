"""The tables of docs/bitstream.md section 10, from the program: ``python -m tests.aeic.bitstream.worked_example``.

Decodes tests/golden/smallest.aeic one symbol at a time with the coder in plain Python and prints its state at each.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from aeic import rans
from aeic.bundle import Bundle
from aeic.entropy_model import EntropyModel, fill
from aeic.latent_codec import LatentCodec
from aeic.passes import PASS_COUNT, gather

GOLDEN = Path(__file__).parents[2] / "golden"
HEAD = " #  element    table  state                q       value  c         f         next state"


def coded_elements(shape: tuple[int, ...], index: int, ids: Any) -> list[tuple[tuple[int, int, int], int]]:
    """((channel, row, column), table) of every coded element of pass ``index``, in the order of the stream."""
    places = np.moveaxis(np.indices(shape), 0, -1).reshape(*shape, 3)
    listed = np.stack([gather(np.ascontiguousarray(places[..., axis]), index).ravel() for axis in range(3)], -1)
    found = [(tuple(place), int(table)) for place, table in zip(listed.tolist(), ids.ravel().tolist()) if table >= 0]
    return sorted(found, key=lambda one: one[1])


def steps() -> list[str]:
    """One line for each symbol."""
    codec, data = LatentCodec(Bundle.load(GOLDEN / "bundle"), 1), (GOLDEN / "smallest.aeic").read_bytes()
    decoded, tables = codec.decode_symbols(data), codec.bundle.tables
    runs: list[tuple[str, list[tuple[tuple[int, int, int], int]], Any]] = [
        ("z", [((channel, 0, 0), channel) for channel in range(len(decoded.z_symbols))], tables.z[0])
    ]
    model = EntropyModel(codec.bundle, threads=1)
    base = model.hyper_synthesis(decoded.z_symbols[None], *decoded.symbols.shape[1:])
    for index in range(PASS_COUNT):
        _, ids = model.context(index, base)
        runs.append(("y", coded_elements(decoded.symbols.shape, index, ids[0]), tables.y))
        base = fill(base, index, gather(decoded.y_hat, index)[None])
    decoder = rans.Decoder(data[9:], accelerate=False)
    lines: list[str] = []
    for name, elements, rows in runs:
        for (channel, row, column), table in elements:
            state = decoder._state
            value = int(decoder.read(np.array([table]), rows)[0])
            freqs, cums = rows.lists(table)
            symbol = value - int(rows.offsets[table])
            element = f"{name} {channel},{row},{column}"
            lines.append(
                f"{len(lines):2}  {element:9}  {table:5}  {state:016x}  {state & 0xFFFFFF:06x}  {value:5}"
                f"  {cums[symbol]:06x}  {freqs[symbol]:6x}  {decoder._state:016x}"
            )
    assert decoder.finish() == int(lines[-1].split()[-1], 16)
    return [HEAD, *lines]


def check() -> list[str]:
    """What the check value is made of."""
    codec, data = LatentCodec(Bundle.load(GOLDEN / "bundle"), 1), (GOLDEN / "smallest.aeic").read_bytes()
    decoded = codec.decode_symbols(data)
    parts = [
        ("z", decoded.z_symbols.astype("<i2").tobytes()),
        ("symbols", decoded.symbols.astype("<i2").tobytes()),
        ("rate, sizes", bytes([0, 16, 0, 16, 0])),
        ("y_hat", decoded.y_hat.astype("<f4").tobytes()),
    ]
    lines, crc = [], 0
    for name, part in parts:
        for start in range(0, len(part), 32):
            lines.append(f"{name if start == 0 else '':11}  {part[start : start + 32].hex()}")
        crc = zlib.crc32(part, crc)
        lines.append(f"{'':11}  CRC so far {crc:08x}")
    return [*lines, f"check value  {crc & 0xFFFFFF or 1:06x}", f"digest       {decoded.digest}"]


if __name__ == "__main__":
    print("\n".join([*steps(), "", *check()]))
