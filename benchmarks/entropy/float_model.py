"""The entropy step in float32, as an ONNX graph and as a torch module, for comparison with the integer step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aeic.passes import PASS_COUNT, pass_mask
from aeic.profiles import SCALE_COUNT, SCALE_MAX, SCALE_MIN, SKIP_SCALE
from aeic_nets.codec import Codec, coding_mask
from aeic_nets.integer import network
from aeic_nets.integer.calibrate import sizes_of
from aeic_nets.integer.export import _info
from aeic_nets.integer.fake_quant import layer_weights
from aeic_nets.integer.onnx_builder import FLOAT, INT8, INT16, INT32, Graph
from aeic_nets.integer.scale_index import symbol_limits

LOG_STEP = float(np.log(SCALE_MAX / SCALE_MIN)) / (SCALE_COUNT - 1)


class FloatStep(nn.Module):
    """Hyper synthesis and four passes: y (1, M, h, w), z_symbols (1, Cz, hz, wz) to symbols, indexes, y_hat."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec
        self.limits = torch.from_numpy(np.append(0, symbol_limits()).astype(np.float32))

    def forward(self, y: Tensor, z_symbols: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        base = self.codec.h_s(z_symbols.float())[..., : y.shape[-2], : y.shape[-1]]
        symbols, indexes = torch.zeros_like(y), torch.zeros_like(y)
        for index in range(PASS_COUNT):
            means, scales = self.codec.context(index, base)
            found = ((scales.clamp_min(1e-5).log() - float(np.log(SCALE_MIN))) / LOG_STEP).clamp(0, SCALE_COUNT - 1)
            found = torch.where(scales < SKIP_SCALE, -1.0, found.trunc())
            limit = self.limits[found.long() + 1]
            q = torch.minimum(torch.maximum((y - means).round(), -limit), limit)
            mask = coding_mask(index, y)
            base = torch.where(mask, q + means, base)
            symbols, indexes = torch.where(mask, q, symbols), torch.where(mask, found, indexes)
        return symbols.short(), indexes.char(), base


class PlainOps:
    """The operations of :mod:`aeic_nets.integer.network` in float32 ONNX: one node a layer, no rounding."""

    def __init__(self, codec: Codec, graph: Graph) -> None:
        self._find, self.g = codec.get_submodule, graph

    def quantise(self, x: str, site: str) -> str:
        return x

    def stream(self, x: str) -> str:
        return x

    settle = quantise

    def add(self, a: str, b: str) -> str:
        return self.g.op("Add", a, b)

    plus = add

    def conv(self, x: str, layer: str) -> str:
        weight, bias, groups = layer_weights(self._find, layer)
        rows, columns = weight.shape[2:]
        arrays = (self.g.constant(part.detach().numpy(), np.float32) for part in (weight, bias))
        pads = [rows // 2, columns // 2] * 2
        return self.g.op("Conv", x, *arrays, group=groups, kernel_shape=[rows, columns], pads=pads)

    wide = conv

    def gelu(self, x: str, site: str) -> str:
        return self.g.op("Gelu", x)

    def gate(self, a: str, b: str, site: str) -> str:
        return self.g.op("Mul", a, b)

    def norm(self, x: str, site: str) -> str:
        count = layer_weights(self._find, site.removesuffix("norm") + "fc1.u")[0].shape[1]
        one = self.g.constant(np.ones(count), np.float32)  # scale and shift are folded into fc1
        last = self.g.op("Transpose", x, perm=[0, 2, 3, 1])
        normed = self.g.op("LayerNormalization", last, one, axis=-1, epsilon=1e-6)
        return self.g.op("Transpose", normed, perm=[0, 3, 1, 2])

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        return self.g.ops("Split", len(sizes), x, self.g.constant(list(sizes), np.int64), axis=1)

    def concat(self, parts: Sequence[str]) -> str:
        return self.g.op("Concat", *parts, axis=1)

    def shuffle(self, x: str) -> str:
        return self.g.op("DepthToSpace", x, blocksize=2, mode="CRD")

    def coded(self, x: str, index: int) -> str:
        return x

    def halves(self, x: str) -> tuple[str, str]:
        first, second = self.g.ops("Split", 2, x, axis=1, num_outputs=2)
        return first, second


@torch.no_grad()
def write_float_graph(codec: Codec, height: int, width: int, path: Path) -> None:
    """Write the step for latents of a fixed (height, width). Masks are then constants, which favours float32."""
    g, sizes = Graph(), sizes_of(codec)
    ops = PlainOps(codec, g)
    number = lambda value: g.constant(value, np.float32)  # noqa: E731
    base = network.hyper_synthesis(ops, g.op("Cast", "z_symbols", to=FLOAT), sizes)
    ends, axes = g.constant([height, width], np.int64), g.constant([2, 3], np.int64)
    base = g.op("Slice", base, g.constant([0, 0], np.int64), ends, axes)
    limits = number(np.append(0, symbol_limits()))
    symbols = indexes = number(0)
    for index in range(PASS_COUNT):
        means, scales = network.context(ops, index, base, sizes)
        logs = g.op("Sub", g.op("Log", g.op("Max", scales, number(1e-5))), number(np.log(SCALE_MIN)))
        found = g.op("Clip", g.op("Floor", g.op("Div", logs, number(LOG_STEP))), number(0), number(SCALE_COUNT - 1))
        found = g.op("Where", g.op("Less", scales, number(SKIP_SCALE)), number(-1), found)
        limit = g.op("Gather", limits, g.op("Cast", g.op("Add", found, number(1)), to=INT32))
        q = g.op("Round", g.op("Sub", "y", means))
        q = g.op("Max", g.op("Min", q, limit), g.op("Neg", limit))
        mask = g.constant(pass_mask(index, sizes.latent_channels, height, width)[None], np.bool_)
        base = g.op("Where", mask, g.op("Add", q, means), base)
        symbols, indexes = g.op("Where", mask, q, symbols), g.op("Where", mask, found, indexes)
    kinds: dict[str, tuple[str, int]] = {
        "symbols": (g.op("Cast", symbols, to=INT16), INT16),
        "indexes": (g.op("Cast", indexes, to=INT8), INT8),
        "y_hat": (base, FLOAT),
    }
    channels = sizes.latent_channels
    outputs: dict[str, tuple[str, Any]] = {k: (name, _info(k, dtype, channels)) for k, (name, dtype) in kinds.items()}
    inputs = [_info("y", FLOAT, channels), _info("z_symbols", INT32, sizes.hyper_channels, "hz", "wz")]
    path.write_bytes(g.model(inputs, outputs, "float"))
