"""Measures speed and overhead of the entropy coder, and of CompressAI's: ``python -m benchmarks.entropy.rans``.

The symbols are Gaussian. As in a frame, each has one of the 64 tables of y. Speed is measured over one long run, and
overhead over many short frames, relative to the ideal code length of each coder's own tables. CompressAI (optional, in
the extra ``train``) is a 32-bit rANS with 16-bit tables and escapes. It takes Python lists, and the time to make them
is not counted. The program prints a table and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeic import rans
from aeic.tables import TOTAL, Rows, gaussian_rows, gaussian_scales

Array = NDArray[Any]


def draw(rng: np.random.Generator, count: int, rows: Rows) -> tuple[Array, Array]:
    """(values, ids): mostly narrow tables, as in a trained model, and values drawn from their tables."""
    ids = np.minimum(rng.geometric(0.06, count) - 1, len(rows) - 1).astype(np.int8)
    residuals = np.rint(rng.normal(size=count) * gaussian_scales()[ids])
    return np.clip(residuals, rows.lowest[ids], rows.highest[ids]).astype(np.int16), ids


def best_seconds(task: Callable[[], Any], repeats: int) -> float:
    """The shortest of ``repeats`` runs, which other work disturbed least."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return min(times)


class Ours:
    """``aeic.rans``, in plain Python or compiled."""

    def __init__(self, accelerate: bool) -> None:
        self.rows = Rows(*gaussian_rows())
        self.accelerate = accelerate
        self.check = 0xABCDEF

    def encode(self, values: Array, ids: Array) -> bytes:
        self.check = (
            self.check * 0x5DEECE66D + 11 & 0xFFFFFF or 1
        )  # differs each time, because it is part of the overhead
        return rans.encode([(values, ids, self.rows)], self.check, self.accelerate)

    def decode(self, data: bytes, ids: Array) -> Array:
        decoder = rans.Decoder(data, self.accelerate)
        values = decoder.read(ids, self.rows)
        assert decoder.finish() > 0
        return values

    def ideal_bytes(self, values: Array, ids: Array) -> float:
        return self.rows.bits(values, ids) / 8


class CompressAI:
    """compressai.ans with 16-bit tables of the same distributions."""

    def __init__(self) -> None:
        from compressai import ans
        from compressai._CXX import pmf_to_quantized_cdf

        rows = Rows(*gaussian_rows())
        pmfs = [(rows.freqs[rows.row(i)] / TOTAL).tolist() for i in range(len(rows))]
        self.cdfs = [list(pmf_to_quantized_cdf([*pmf, 1e-9], 16)) for pmf in pmfs]
        self.lengths = [len(cdf) for cdf in self.cdfs]
        self.offsets = rows.offsets.tolist()
        self.encoder, self.decoder = ans.RansEncoder(), ans.RansDecoder()

    def encode(self, values: Any, ids: Any) -> bytes:
        data: bytes = self.encoder.encode_with_indexes(list(values), list(ids), self.cdfs, self.lengths, self.offsets)
        return data

    def decode(self, data: bytes, ids: Any) -> Array:
        return np.array(self.decoder.decode_with_indexes(data, list(ids), self.cdfs, self.lengths, self.offsets))

    def ideal_bytes(self, values: Array, ids: Array) -> float:
        weights = [
            self.cdfs[i][v - self.offsets[i] + 1] - self.cdfs[i][v - self.offsets[i]]
            for v, i in zip(values.tolist(), ids.tolist(), strict=True)
        ]
        return float((16 - np.log2(weights)).sum() / 8)


def measure(coder: Ours | CompressAI, symbols: int, frames: int, repeats: int) -> dict[str, float]:
    """Microseconds a symbol, millions of symbols a second, and bytes above the ideal."""
    rng, rows = np.random.default_rng(0), Rows(*gaussian_rows())
    values, ids = draw(rng, symbols, rows)
    given = (values.tolist(), ids.tolist()) if isinstance(coder, CompressAI) else (values, ids)
    data = coder.encode(*given)
    assert (coder.decode(data, given[1]) == values).all()
    encode = best_seconds(lambda: coder.encode(*given), repeats)
    decode = best_seconds(lambda: coder.decode(data, given[1]), repeats)
    over = []
    for _ in range(frames):
        values, ids = draw(rng, int(rng.integers(50, 4000)), rows)
        given = (values.tolist(), ids.tolist()) if isinstance(coder, CompressAI) else (values, ids)
        over.append(len(coder.encode(*given)) - coder.ideal_bytes(values, ids))
    return {
        "encode_us_per_symbol": round(1e6 * encode / symbols, 4),
        "decode_us_per_symbol": round(1e6 * decode / symbols, 4),
        "encode_msymbols_per_second": round(symbols / encode / 1e6, 2),
        "decode_msymbols_per_second": round(symbols / decode / 1e6, 2),
        "overhead_bytes_mean": round(float(np.mean(over)), 3),
        "overhead_bytes_max": round(float(np.max(over)), 3),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="speed and overhead of the entropy coders")
    parser.add_argument("--symbols", type=int, default=400_000, help="length of the run that is timed")
    parser.add_argument("--frames", type=int, default=500, help="short frames whose overhead is taken")
    parser.add_argument("--repeats", type=int, default=7, help="runs, of which the fastest counts")
    given = parser.parse_args(arguments)
    coders: dict[str, Ours | CompressAI] = {"plain": Ours(accelerate=False)}
    if rans.AVAILABLE:
        coders["accelerated"] = Ours(accelerate=True)
    try:
        coders["compressai"] = CompressAI()
    except ImportError:
        print("compressai is not installed (extra `train`): its row is left out", file=sys.stderr)
    results = {name: measure(coder, given.symbols, given.frames, given.repeats) for name, coder in coders.items()}
    print(f"{given.symbols} symbols, {given.frames} frames; the overhead of ours includes the 24-bit check\n")
    print(f"{'coder':12} {'encode us':>10} {'decode us':>10} {'encode M/s':>11} {'decode M/s':>11} {'over, bytes':>16}")
    for name, row in results.items():
        encode, decode, *speeds, mean, most = row.values()
        overhead = f"{mean:.2f}, max {most:.2f}"
        print(f"{name:12} {encode:10.3f} {decode:10.3f} {speeds[0]:11.2f} {speeds[1]:11.2f} {overhead:>16}")
    print(json.dumps({"bench": "rans", "symbols": given.symbols, "frames": given.frames, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
