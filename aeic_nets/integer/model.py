"""The numbers of a quantised entropy model: sites (where activations are rounded) and layers (integer weights).

A code is an integer; it stands for ``code * 2**exponent``. Activation codes have 8 bits, or 16 as two 8-bit limbs;
weights 7 bits, or 14 as two 7-bit limbs. They have 7 and not 8 bits because the u8 x s8 kernels of x86 without VNNI add
pairs of products in saturating 16 bits, and 255 * 64 * 2 is the largest that fits.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeic.npz import read_npz

Exponents = NDArray[np.int64]

MAX_BYTES = 512 << 20
"""The largest integer.npz after unpacking. That of ME has 40 MB."""

MEAN_EXPONENT = -8
"""Means and bases are multiples of 2**MEAN_EXPONENT, so that symbol + mean is exact in float32."""


class ExactnessError(ValueError):
    """A layer whose sums could be rounded: it must not be exported. The message says what to change."""


@dataclass(frozen=True)
class Site:
    """A place where activations are rounded to ``bits`` bits in steps of ``2**exponent``.

    8 bits are one limb, up to 16 are two. A site of a stream (see :mod:`network`) may be wider: means have 20 bits.
    ``shift`` is used by GELU only: what is added before rounding, in steps (see :func:`gelu_table`).
    """

    exponent: int
    bits: int = 8
    shift: float = 0.0

    @property
    def lowest(self) -> int:
        return -128 if self.bits == 8 else -(2 ** (self.bits - 1)) + 129

    @property
    def highest(self) -> int:
        return 127 if self.bits == 8 else 2 ** (self.bits - 1) - 129


@dataclass(frozen=True)
class Layer:
    """One convolution. ``limbs``: int8 (O, I/groups, kh, kw), the most significant first; each -64..63.

    Sum of limb products and bias stand in steps of ``2**exponents[o]`` for the last limb, 2**7 times that for the one
    before. The input's exponents are folded into the weights. ``bias`` int32 (O,) stands in steps of
    ``2**(exponents[o] + bias_shift)``.
    """

    limbs: tuple[NDArray[np.int8], ...]
    exponents: Exponents
    bias: NDArray[np.int32]
    groups: int = 1
    bias_shift: int = 0

    @property
    def steps(self) -> NDArray[np.float64]:
        """The step of each output's last limb, (O,)."""
        steps: NDArray[np.float64] = 2.0**self.exponents
        return steps

    @property
    def bias_value(self) -> NDArray[np.float64]:
        """(O,), exact in float32."""
        return self.bias * self.steps * 2.0**self.bias_shift

    @property
    def kernel(self) -> tuple[int, int]:
        _, _, rows, columns = self.limbs[0].shape
        return rows, columns


def bias_shift(code_bits: int, weight_bits: int) -> int:
    """How much coarser a bias is than the last limb, which is finer than a bias needs."""
    return max(0, 8 * (code_bits > 8) + 7 * (weight_bits > 7) - 4)


@dataclass(frozen=True)
class Sizes:
    """The sizes that determine the network's shape."""

    latent_channels: int
    context_width: int
    context_depth: int

    @property
    def hyper_channels(self) -> int:
        return self.latent_channels // 2


@dataclass(frozen=True)
class IntegerModel:
    """The whole: ``medians`` (Cz,) float32 multiples of 2**MEAN_EXPONENT, added to the symbols of z."""

    sizes: Sizes
    sites: dict[str, Site]
    layers: dict[str, Layer] = field(repr=False)
    medians: NDArray[np.float32] = field(repr=False)

    def save(self, path: Path) -> None:
        """Write an .npz that :meth:`load` reads; no pickles in it."""
        arrays: dict[str, NDArray[Any]] = {"medians": self.medians}
        for name, layer in self.layers.items():
            arrays |= {f"{name}/limb{i}": limb for i, limb in enumerate(layer.limbs)}
            arrays |= {f"{name}/exponents": layer.exponents, f"{name}/bias": layer.bias}
        head = {
            "sizes": asdict(self.sizes),
            "sites": {name: asdict(site) for name, site in self.sites.items()},
            "layers": {name: (layer.groups, layer.bias_shift) for name, layer in self.layers.items()},
        }
        arrays["head"] = np.frombuffer(json.dumps(head, sort_keys=True).encode(), np.uint8)
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> IntegerModel:
        """Read a file that :meth:`save` wrote. ``ValueError`` if it is larger than any of our models."""
        arrays = read_npz(path, MAX_BYTES)
        try:
            head = json.loads(arrays["head"].tobytes())
        except RecursionError:
            raise ValueError(f"{path} is malformed: its head is nested too deeply") from None
        layers = {}
        for name, (groups, shift) in head["layers"].items():
            limbs = tuple(arrays[f"{name}/limb{i}"] for i in range(2) if f"{name}/limb{i}" in arrays)
            layers[name] = Layer(limbs, arrays[f"{name}/exponents"], arrays[f"{name}/bias"], groups, shift)
        sites = {name: Site(**site) for name, site in head["sites"].items()}
        return cls(Sizes(**head["sizes"]), sites, layers, arrays["medians"])
