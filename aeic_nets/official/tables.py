"""The research code's 16-bit frequency tables, built as it builds them, for reading its streams.

Our own bitstream has 24-bit tables without escapes (aeic.tables). Source: docs/model.md section 8.4.
"""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aeic.errors import BundleError
from aeic.profiles import SCALE_COUNT, SCALE_MAX, SCALE_MIN
from aeic_nets.codec import Codec

PRECISION = 16
TOTAL = 1 << PRECISION
_REACH = 6.109410204869
"""The normal quantile at 1 - 5e-10: half of a tail mass of 1e-9."""
_CHILD_SECONDS = 300


@dataclass(frozen=True)
class Table:
    """One distribution: ``cdf`` of length + 2 ascending integers from 0 to 65536; its last entry is the escape."""

    cdf: list[int]
    offset: int

    @property
    def length(self) -> int:
        """How many values are coded without an escape: offset, offset + 1, ..."""
        return len(self.cdf) - 2


def gaussian_tables() -> list[Table]:
    """The 64 tables of y, by scale index."""
    scales = torch.exp(torch.linspace(math.log(SCALE_MIN), math.log(SCALE_MAX), SCALE_COUNT))
    centres = torch.ceil(scales * _REACH).int()
    tables = []
    for scale, centre in zip(scales, centres.tolist(), strict=True):
        distance = (torch.arange(2 * centre + 1) - centre).abs().float()
        upper, lower = normal((0.5 - distance) / scale), normal((-0.5 - distance) / scale)
        tables.append(Table(quantised_cdf(torch.cat((upper - lower, 2 * lower[:1])).numpy()), -centre))
    return tables


def factorised_tables(codec: Codec) -> list[Table]:
    """The tables of z, by channel, from the weights of the factorised prior; some seconds, in a child process.

    ``BundleError`` if that fails. See :mod:`aeic_nets.official.table_child` for why.
    """
    model = codec.entropy_bottleneck
    quantiles = model.quantiles.detach()[:, 0]
    medians = quantiles[:, 1]
    low = torch.ceil(medians - quantiles[:, 0]).int().clamp_min(0)
    high = torch.ceil(quantiles[:, 2] - medians).int().clamp_min(0)
    lengths = low + high + 1
    arrays = {"first": medians - low, "count": lengths.max()}
    for kind, parts in (("matrix", model.matrices), ("bias", model.biases), ("factor", model.factors)):
        arrays |= {f"{kind}{i}": part.detach() for i, part in enumerate(parts)}
    packed = io.BytesIO()
    np.savez(packed, **{name: value.numpy() for name, value in arrays.items()})
    with np.load(io.BytesIO(_in_child(packed.getvalue())), allow_pickle=False) as file:
        pmf, tails = file["pmf"], file["tails"]
    return [
        Table(quantised_cdf(np.concatenate((row[:length], tail))), -offset)
        for row, tail, length, offset in zip(pmf, tails, lengths.tolist(), low.tolist(), strict=True)
    ]


@lru_cache(maxsize=2)
def _in_child(data: bytes) -> bytes:
    command = [sys.executable, str(Path(__file__).with_name("table_child.py"))]
    done = subprocess.run(command, input=data, capture_output=True, timeout=_CHILD_SECONDS)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise BundleError(f"the tables of z could not be computed ({last}): is torch installed completely?")
    return done.stdout


def quantised_cdf(pmf: NDArray[np.float32]) -> list[int]:
    """Probabilities, escape last, to ascending integers from 0 to 65536, every step at least 1."""
    scaled = (pmf.astype(np.float32) * np.float32(TOTAL)).astype(np.float64)
    counts = np.floor(scaled + 0.5).astype(np.int64)  # half away from zero, as C's round
    counts = TOTAL * counts // counts.sum()
    cdf = np.concatenate(([0], np.cumsum(counts)))
    cdf[-1] = TOTAL
    for i in range(len(cdf) - 1):
        if cdf[i] != cdf[i + 1]:
            continue
        widths = np.diff(cdf)
        donor = int(np.argmin(np.where(widths > 1, widths, TOTAL + 1)))
        if donor < i:
            cdf[donor + 1 : i + 1] -= 1
        else:
            cdf[i + 1 : donor + 1] += 1
    return [int(value) for value in cdf]


def pack(tables: Sequence[Table]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """(size fields, offsets, all cdfs in a row) as int32: the form of the golden vectors."""
    sizes = np.array([len(table.cdf) for table in tables], np.int32)
    offsets = np.array([table.offset for table in tables], np.int32)
    return sizes, offsets, np.concatenate([table.cdf for table in tables]).astype(np.int32)


def normal(x: Tensor) -> Tensor:
    """The standard normal distribution function by erfc, in the precision of ``x``, as the research code has it."""
    return 0.5 * torch.erfc(-(2**-0.5) * x)
