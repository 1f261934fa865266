"""The integer entropy model, written once more from section 6 of docs/model.md alone, gives the numbers of ours.

It reads integer.npz as that section describes it. Only the layout of the network comes from sections 3 and 4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aeic_nets.integer.reference import Reference
from tests.support.models.exact_models import MODELS, bases, small_model

Floats = NDArray[np.float32]
Codes = tuple[NDArray[np.int64], NDArray[np.int64], int]
"""Integers (N, C, H, W), the exponent of each channel, bits."""


class Rebuilt:
    """Section 6 as functions of the arrays of a file."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.arrays = dict(file)
        head = json.loads(self.arrays["head"].tobytes())
        self.sites, self.layers, self.sizes = head["sites"], head["layers"], head["sizes"]

    # -- section 6.1 -------------------------------------------------------------------------------------------------

    def quantised(self, x: Floats, site: str) -> Codes:
        exponent, bits = self.sites[site]["exponent"], self.sites[site]["bits"]
        low, high = (-128, 127) if bits == 8 else (129 - 2 ** (bits - 1), 2 ** (bits - 1) - 129)
        codes = np.rint(np.clip(x * np.float32(2.0**-exponent), low, high)).astype(np.int64)
        return codes, np.full(x.shape[1], exponent), bits

    def value(self, x: Codes) -> Floats:
        codes, exponents, _ = x
        return (codes * 2.0 ** exponents[:, None, None]).astype(np.float32)

    def settled(self, x: Floats, site: str) -> Floats:
        return self.value(self.quantised(x, site))

    def wide(self, x: Codes, name: str) -> Floats:
        codes, _, bits = x
        groups, shift = self.layers[name]
        exponent = self.arrays[f"{name}/exponents"].astype(np.float64)[:, None, None]
        total = (self.arrays[f"{name}/bias"][:, None, None] * 2.0 ** (exponent + shift)).astype(np.float32)
        weights = [(1, "limb0")] if f"{name}/limb1" not in self.arrays else [(128, "limb0"), (1, "limb1")]
        high = (codes + 128) // 256
        parts = [(1, codes)] if bits == 8 else [(256, high), (1, codes - 256 * high)]
        for weight_factor, limb in weights:
            for code_factor, part in parts:
                assert part.min() >= -128 and part.max() <= 127
                sums = convolved(part, self.arrays[f"{name}/{limb}"], groups).astype(np.float32)
                total = total + sums * (2.0**exponent * weight_factor * code_factor).astype(np.float32)
        return total

    def layer(self, x: Codes, name: str) -> Codes:
        return self.quantised(self.wide(x, name), name)

    def gelu(self, x: Codes, site: str) -> Codes:
        codes, exponents, _ = x
        exponent, shift = self.sites[site]["exponent"], self.sites[site]["shift"]
        table = {}
        for k in np.unique(codes).tolist():
            v = k * 2.0 ** int(exponents[0])
            table[k] = round(0.5 * v * (1 + math.erf(v / math.sqrt(2))) / 2.0**exponent + shift)
        made = np.vectorize(lambda k: min(max(table[k], -128), 127))(codes)
        return made, np.full_like(exponents, exponent), 8

    def norm(self, x: Floats, name: str) -> Codes:
        c, wide = x.shape[1], x.astype(np.float64)
        s, q = wide.sum(1, keepdims=True), (wide**2).sum(1, keepdims=True)
        r = (1 / np.sqrt(c * q - s**2 + float(c) ** 2 * 1e-6)).astype(np.float32)
        return self.quantised((c * wide - s).astype(np.float32) * r, f"{name}.norm")

    # -- section 6.2 -------------------------------------------------------------------------------------------------

    def idw(self, x: Codes, name: str) -> Codes:
        codes, exponents, bits = x
        c, q = codes.shape[1], codes.shape[1] // 8
        made = [codes[:, : c - 3 * q]]
        steps = [exponents[: c - 3 * q]]
        for start, layer in zip((c - 3 * q, c - 2 * q, c - q), ("dwconv_hw", "dwconv_w", "dwconv_h"), strict=True):
            part = codes[:, start : start + q], exponents[start : start + q], bits
            some, exponent, _ = self.layer(part, f"{name}.{layer}")
            made.append(some)
            steps.append(exponent)
        return np.concatenate(made, 1), np.concatenate(steps), 8

    def gate(self, u: Codes, v: Codes, name: str) -> Codes:
        return self.quantised(self.value(u) * self.value(v), f"{name}.gate")

    def star(self, x: Floats, name: str) -> Floats:
        normed = self.norm(self.value(self.idw(self.quantised(x, f"{name}.in"), f"{name}.dwconv")), name)
        u = self.gelu(self.layer(normed, f"{name}.fc1.u"), f"{name}.gelu")
        gated = self.gate(u, self.layer(normed, f"{name}.fc1.v"), name)
        return x + self.value(self.layer(gated, f"{name}.fc2"))

    def inx(self, x: Floats, name: str) -> Floats:
        mixed = self.idw(self.quantised(x, f"{name}.in"), f"{name}.depthconv")
        return x + self.value(
            self.layer(self.gelu(self.layer(mixed, f"{name}.conv1"), f"{name}.gelu"), f"{name}.conv2")
        )

    def gated(self, x: Floats, name: str) -> Floats:
        normed = self.norm(x, name)
        u = self.gelu(self.layer(normed, f"{name}.fc1.u"), f"{name}.gelu")
        v = self.layer(self.layer(normed, f"{name}.fc1.v"), f"{name}.conv")
        return x + self.value(self.layer(self.gate(u, v, name), f"{name}.fc2"))

    def up(self, x: Floats, name: str) -> Floats:
        x = self.settled(self.wide(self.quantised(x, f"{name}.in"), f"{name}.body.0"), f"{name}.out")
        n, c, h, w = x.shape
        return x.reshape(n, c // 4, 2, 2, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)

    def adapter(self, x: Floats, name: str) -> Floats:
        codes = self.quantised(x, f"{name}.in")
        hidden = self.gelu(self.layer(codes, f"{name}.branch1.0"), f"{name}.branch1.1")
        hidden = self.gelu(self.layer(hidden, f"{name}.branch1.2"), f"{name}.branch1.3")
        return self.wide(hidden, f"{name}.branch1.4") + self.wide(codes, f"{name}.branch2")

    def h_s(self, z_symbols: NDArray[np.int32]) -> Floats:
        x = z_symbols.astype(np.float32) + self.arrays["medians"][:, None, None]
        blocks: list[Callable[[Floats, str], Floats]] = [self.up, self.star, self.star, self.up]
        for number, block in enumerate(blocks):
            x = block(x, f"h_s.increase.{number}")
        return x

    def context(self, i: int, base: Floats) -> tuple[Floats, Floats]:
        x = self.settled(self.adapter(base, f"adapter_in.{i}"), f"adapter_in.{i}.out")
        for j in range(self.sizes["context_depth"]):
            x = self.gated(self.inx(x, f"g_c.block.{j}.blocks.0"), f"g_c.block.{j}.blocks.1")
        means, scales = np.split(self.adapter(x, f"adapter_out.{i}"), 2, 1)
        return self.settled(means, "means"), scales


# -- section 6.3 -----------------------------------------------------------------------------------------------------


def cell(s: float) -> int:
    return math.floor(512 * min(s, 16)) + math.floor(8 * s)


def index(scale: float) -> int:
    step = (math.log(256) - math.log(0.11)) / 63
    thresholds = [0.08] + [0.11 * math.exp(k * step) for k in range(1, 64)]
    moved = [math.ceil(512 * t - 1e-6) / 512 if t < 16 else min(math.ceil(8 * t - 1e-6) / 8, 256) for t in thresholds]
    reached = [k for k, t in enumerate(moved) if cell(t) <= cell(min(max(scale, 0), 256))]
    return reached[-1] if reached else -1


def convolved(codes: NDArray[np.int64], weight: NDArray[np.int8], groups: int) -> NDArray[np.int64]:
    """Zero padding that keeps the sides."""
    _, _, rows, columns = weight.shape
    n, _, h, w = codes.shape
    padded = np.pad(codes, ((0, 0), (0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2)))
    total = np.zeros((n, len(weight), h, w), np.int64)
    for i in range(rows):
        for j in range(columns):
            part, tap = padded[:, :, i : i + h, j : j + w], weight[:, :, i, j].astype(np.int64)
            total += tap[:, 0, None, None] * part if groups > 1 else np.einsum("oc,nchw->nohw", tap, part)
    return total


@pytest.mark.parametrize("widths", MODELS.values(), ids=MODELS)
def test_the_integers_from_the_text(widths: tuple[tuple[str, int], ...], tmp_path: Path) -> None:
    model = small_model(0, widths)
    model.save(tmp_path / "integer.npz")
    rebuilt, reference = Rebuilt(tmp_path / "integer.npz"), Reference(model)
    symbols = np.random.default_rng(0).integers(-9, 10, (1, model.sizes.hyper_channels, 2, 3)).astype(np.int32)
    np.testing.assert_array_equal(rebuilt.h_s(symbols), reference.hyper_synthesis(symbols))
    for base in (bases()["usual"], bases()["wide"]):
        for i in range(4):
            means, scales = rebuilt.context(i, base)
            indexes = np.vectorize(index)(scales)
            expected_means, expected_indexes = reference.context(i, base)
            # Elements that the pass does not code are 0 and -1 in ours, so compare where ours has an index or a mean.
            coded = (expected_means != 0) | (expected_indexes >= 0)
            assert coded.sum() > coded.size / 5 and len(np.unique(indexes[coded])) > 3
            np.testing.assert_array_equal(means[coded], expected_means[coded])
            np.testing.assert_array_equal(indexes[coded], expected_indexes[coded])
