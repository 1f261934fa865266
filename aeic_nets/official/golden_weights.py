"""The golden weights and picture: every tensor made from its name, so that vectors at full size need no weights file.

Each value comes from PCG64 seeded with the CRC-32 of ``<name space>/<key>``; the published research modules, filled
the same way, gave the golden vectors.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aeic_nets.official.keys import Shape

_FILTERS = (1, 3, 3, 3, 3, 1)


def golden_tensor(space: str, key: str, shape: Shape) -> NDArray[np.float32]:
    """The float32 value of tensor ``key`` of ``space`` ("codec", "sd_unet", "unet_ckpt" or "half")."""
    seed = zlib.crc32(f"{space}/{key}".encode())
    n = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    leaf = key.rsplit(".", 1)[-1]
    if key.startswith("entropy_bottleneck._matrix"):
        n = math.log(math.expm1(1 / (10 ** (1 / 5)) / _FILTERS[int(leaf[7:]) + 1])) + 0.1 * n
    elif key.startswith("entropy_bottleneck._bias"):
        n *= 0.25
    elif key.startswith("entropy_bottleneck._factor"):
        n *= 0.1
    elif leaf == "quantiles":
        median = 0.3 * n[:, 0, 1]
        n = np.stack([median - 10, median, median + 10], axis=-1)[:, None, :]
    elif len(shape) > 1:
        n /= math.sqrt(math.prod(shape[1:]))
    else:
        n = 1 + 0.02 * n if leaf == "weight" else 0.02 * n
    return n.astype(np.float32)


class GoldenTensors(Mapping[str, Tensor]):
    """The tensors of one name space by official key, each made when it is asked for and not kept."""

    def __init__(self, space: str, shapes: Mapping[str, Shape], prefix: str = "") -> None:
        self._space, self._shapes, self._prefix = space, shapes, prefix

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(golden_tensor(self._space, self._prefix + key, self._shapes[key]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def golden_picture(height: int, width: int, phase: float) -> Tensor:
    """The golden input picture, (1, 3, height, width) float32 in [-1, 1]."""
    y, x = np.meshgrid(np.arange(height, dtype=np.float64), np.arange(width, dtype=np.float64), indexing="ij")
    channels = []
    for c in range(3):
        a = np.sin(2 * np.pi * ((3 + c) * x / width + (2 - c) * y / height) + 0.7 * c + phase)
        b = np.sin(2 * np.pi * (x * x + (c + 1) * y * y) / (24.0 * width))
        d = np.where(((x // (8 * (c + 1))) + (y // 16)) % 2 == 0, 1.0, -1.0)
        channels.append(0.45 * a + 0.3 * b + 0.25 * d)
    return torch.from_numpy(np.stack(channels)[None].astype(np.float32))
