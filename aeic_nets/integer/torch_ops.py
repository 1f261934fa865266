"""The integer entropy model in torch, batched, on any device: bit-identical to every other interpreter.

Values are laid out (N, H, W, C), so that a convolution is one matrix product of whole numbers. Codes are whole numbers
of at most 8 bits and weights of at most 7, and :mod:`.proof` shows that no sum reaches 2**24. Such products are exact
in float32 whatever the order of summation, and stay exact if a GPU rounds the factors to TF32 (11 bits) or float16
(whole numbers up to 2**11) and adds in float32. Not allowed: accumulation in less than float32, fp8, and TensorRT,
which turns the float64 sums of the norm into float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from aeic.passes import PASS_COUNT, gather, group_map
from aeic.profiles import SCALE_MAX
from aeic_nets.integer import network
from aeic_nets.integer.fake_quant import norm_floor
from aeic_nets.integer.gelu_table import gelu_table
from aeic_nets.integer.model import Exponents, IntegerModel, Layer, Site
from aeic_nets.integer.scale_index import COARSE, FINE, SWITCH, index_table, symbol_limits

Factors = Literal["float32", "float16"]
Function = Callable[[Tensor], Any]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Codes:
    """``values`` (N, H, W, C) float32, whole numbers in steps of ``2**exponents[c]``; 8 or 16 bits."""

    values: Tensor
    exponents: Exponents
    bits: int = 8


class TorchOps:
    """The operations of :mod:`.network` on tensors of one device; a stream is float32 (N, H, W, C).

    ``factors`` is the type in which a GPU multiplies. float16 needs CUDA, whose products then still sum in float32.
    """

    def __init__(self, model: IntegerModel, device: torch.device, factors: Factors = "float32") -> None:
        if factors == "float16" and device.type != "cuda":
            raise ValueError("float16 factors with float32 sums need a CUDA device: use float32")
        self._sites, self._layers, self._device, self._factors = model.sites, model.layers, device, factors
        self._constants: dict[Any, Tensor] = {}

    def constant(self, key: Any, make: Callable[[], NDArray[Any]]) -> Tensor:
        """An array on the device, made once for each ``key``."""
        if key not in self._constants:
            self._constants[key] = torch.as_tensor(np.ascontiguousarray(make()), device=self._device)
        return self._constants[key]

    def quantise(self, x: Tensor, site: str) -> Codes:
        where = self._sites[site]
        return Codes(_round(x, where), np.full(x.shape[-1], where.exponent), where.bits)

    def stream(self, x: Codes) -> Tensor:
        if (x.exponents == x.exponents[0]).all():
            return x.values * 2.0 ** int(x.exponents[0])
        steps = self.constant(("steps", x.exponents.tobytes()), lambda: (2.0**x.exponents).astype(np.float32))
        return x.values * steps

    def settle(self, x: Tensor, site: str) -> Tensor:
        where = self._sites[site]
        return _round(x, where) * 2.0**where.exponent

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    plus = add

    def conv(self, x: Codes, layer: str) -> Codes:
        return self.quantise(self.wide(x, layer), layer)

    def wide(self, x: Codes, layer: str) -> Tensor:
        kept = self._layers[layer]
        total = self.constant((layer, "bias"), lambda: kept.bias_value.astype(np.float32))
        for number, weight_factor in enumerate((128, 1)[-len(kept.limbs) :]):
            for code_factor, values in _limbs(x):
                factor = weight_factor * code_factor
                step = self.constant((layer, "step", factor), partial(_steps, kept, factor))
                total = self._product(values, layer, kept, number) * step + total
        return total

    def gelu(self, x: Codes, site: str) -> Codes:
        codes = self._gelu_table(x, site)[(x.values + 128).int()]
        return Codes(codes, np.full_like(x.exponents, self._sites[site].exponent))

    def gate(self, a: Codes, b: Codes, site: str) -> Codes:
        return self.quantise(self.stream(a) * self.stream(b), site)

    def norm(self, x: Tensor, site: str) -> Codes:
        count, wide = x.shape[-1], x.double()
        total, squares = wide.sum(-1, keepdim=True), (wide * wide).sum(-1, keepdim=True)
        spread = count * squares - total * total + norm_floor(count)
        inverse = (1 / spread.sqrt()).float()
        return self.quantise((count * wide - total).float() * inverse, site)

    def split(self, x: Codes, sizes: Sequence[int]) -> list[Codes]:
        exponents = np.split(x.exponents, np.cumsum(sizes)[:-1])
        return [Codes(part, steps, x.bits) for part, steps in zip(x.values.split(list(sizes), -1), exponents)]

    def concat(self, parts: Sequence[Codes]) -> Codes:
        return Codes(torch.cat([p.values for p in parts], -1), np.concatenate([p.exponents for p in parts]))

    def shuffle(self, x: Tensor) -> Tensor:
        count, height, width, channels = x.shape
        parts = x.reshape(count, height, width, channels // 4, 2, 2).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(count, 2 * height, 2 * width, channels // 4)

    def coded(self, x: Codes, index: int) -> Codes:
        return x

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, -1)
        return first, second

    def cells(self, scales: Tensor) -> Tensor:
        """The cell of every wide scale (see :mod:`.scale_index`), int64."""
        clipped = scales.clamp(0, SCALE_MAX)
        return ((clipped.clamp(max=SWITCH) * FINE).floor() + (clipped * COARSE).floor()).long()

    def _gelu_table(self, x: Codes, site: str) -> Tensor:
        """(256,) float32: the code of GELU for each code of ``x``, from -128 on."""
        where, exponent = self._sites[site], int(x.exponents[0])
        return self.constant(
            (site, exponent), lambda: gelu_table(exponent, where.exponent, where.shift).astype(np.float32)
        )

    def _product(self, values: Tensor, name: str, layer: Layer, limb: int) -> Tensor:
        """The integer convolution with one limb of the weights: (N, H, W, C) to (N, H, W, O), zero padding."""
        weight = layer.limbs[limb]
        if layer.groups == 1:
            matrix = self.constant((name, limb), lambda: matrix_of(weight).astype(self._factors))
            return self._multiply(patches(values, layer), matrix)
        kernel = self.constant((name, limb), lambda: weight[:, 0].reshape(len(weight), -1).T.astype(np.float32))
        first, *others = taps(values, layer)
        total = first * kernel[0]
        for tap, row in zip(others, kernel[1:]):
            total = total + tap * row
        return total

    def _multiply(self, rows: Tensor, matrix: Tensor) -> Tensor:
        """(..., K) times (K, O), float32."""
        if self._factors == "float32":
            return rows @ matrix
        flat = torch.mm(rows.reshape(-1, rows.shape[-1]).half(), matrix, out_dtype=torch.float32)
        return flat.view(*rows.shape[:-1], -1)


class TorchEntropyModel:
    """The entropy model of a bundle as :class:`aeic.entropy_model.EntropyDecoderModel`, and the encoder's quantiser.

    ``model`` is the bundle's integer.npz. Arrays go in and come out as in :mod:`aeic.entropy_model`, batched over N
    pictures of one size.
    """

    def __init__(
        self,
        model: IntegerModel,
        device: str | torch.device = "cpu",
        factors: Factors = "float32",
        wrap: Callable[[Function], Function] = lambda function: function,
        ops: type[TorchOps] = TorchOps,
    ) -> None:
        """``wrap``: put around each function of one tensor that decoding calls, to record and replay CUDA graphs.

        ``ops``: the operations, see also :class:`.triton_ops.TritonOps`.
        """
        self.device = torch.device(device)
        self._model, self._ops = model, ops(model, self.device, factors)
        functions: list[Function] = [partial(self._context, index) for index in range(PASS_COUNT)]
        functions.append(self._hyper)
        *self._contexts, self._whole_base = map(wrap, functions)

    @torch.inference_mode()
    def hyper_synthesis(self, z_symbols: NDArray[np.int32], height: int, width: int) -> Floats:
        """h_s: symbols of z (N, Cz, hz, wz) to the first base, cropped to (N, M, height, width)."""
        base: Tensor = self._whole_base(torch.as_tensor(z_symbols, device=self.device))
        return self._host(base[:, :height, :width])

    @torch.inference_mode()
    def context(self, index: int, base: Floats) -> tuple[Floats, NDArray[np.int8]]:
        """Means and table indexes of the elements of pass ``index``, gathered: (N, M/4, h, w) each."""
        means, cells = self._contexts[index](torch.as_tensor(base, device=self.device).permute(0, 2, 3, 1))
        table = self._ops.constant("indexes", index_table)
        return gather(self._host(means), index), gather(self._host(table[cells]), index)

    @torch.inference_mode()
    def quantise(self, y: Floats, z_symbols: NDArray[np.int32]) -> tuple[NDArray[np.int16], NDArray[np.int8], Floats]:
        """All four passes of the encoder: y with its gain (N, M, h, w) to symbols, indexes and y_hat of that shape."""
        constant, channels = self._ops.constant, self._model.sizes.latent_channels
        height, width = y.shape[2:]
        base = self._hyper(torch.as_tensor(z_symbols, device=self.device))[:, :height, :width]
        latents = torch.as_tensor(y, device=self.device).permute(0, 2, 3, 1)
        symbols, indexes = torch.zeros_like(latents), torch.full_like(latents, -1)
        table = constant("indexes", index_table)
        limits = constant("limits", lambda: np.append(symbol_limits(), 0).astype(np.float32))  # entry -1: skipped
        for index in range(PASS_COUNT):
            means, cells = self._context(index, base)
            found = table[cells].long()
            limit = limits[found]
            rounded = torch.minimum(torch.maximum((latents - means).round(), -limit), limit)
            mask = constant(("mask", index, height, width), partial(_mask, index, channels, height, width))
            base = torch.where(mask, rounded + means, base)
            symbols, indexes = torch.where(mask, rounded, symbols), torch.where(mask, found.float(), indexes)
        return self._host(symbols.short()), self._host(indexes.to(torch.int8)), self._host(base)

    def _hyper(self, z_symbols: Tensor) -> Tensor:
        """The whole first base, (N, 4hz, 4wz, M)."""
        medians = self._ops.constant("medians", lambda: self._model.medians)
        z = z_symbols.float().permute(0, 2, 3, 1) + medians
        return network.hyper_synthesis(self._ops, z, self._model.sizes)

    def _context(self, index: int, base: Tensor) -> tuple[Tensor, Tensor]:
        """Means, and the cell of every scale, (N, h, w, M)."""
        means, scales = network.context(self._ops, index, base, self._model.sizes)
        return means, self._ops.cells(scales)

    def _host(self, x: Tensor) -> NDArray[Any]:
        """(N, H, W, C) on the device to (N, C, H, W) on the host."""
        array: NDArray[Any] = x.permute(0, 3, 1, 2).contiguous().cpu().numpy()
        return array


def taps(values: Tensor, layer: Layer) -> list[Tensor]:
    """The input (..., H, W, C) under each tap of the layer's kernel, rows first, zero outside."""
    rows, columns = layer.kernel
    if (rows, columns) == (1, 1):
        return [values]
    height, width = values.shape[-3:-1]
    padded = F.pad(values, (0, 0, columns // 2, columns // 2, rows // 2, rows // 2))
    return [padded[..., a : a + height, b : b + width, :] for a in range(rows) for b in range(columns)]


def patches(values: Tensor, layer: Layer) -> Tensor:
    """What :func:`matrix_of` is multiplied with: (..., H, W, taps * C), taps outermost."""
    under = taps(values, layer)
    return under[0] if len(under) == 1 else torch.cat(under, -1)


def matrix_of(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """(O, I, kh, kw) to (kh * kw * I, O)."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))


def _round(x: Tensor, site: Site) -> Tensor:
    return (x * 2.0**-site.exponent).clamp(site.lowest, site.highest).round()


def _limbs(x: Codes) -> list[tuple[int, Tensor]]:
    """(factor, codes -128..127), the most significant first; the sum of factor * codes is ``values``."""
    if x.bits == 8:
        return [(1, x.values)]
    high = ((x.values + 128) * 2.0**-8).floor()
    return [(256, high), (1, x.values - 256 * high)]


def _steps(layer: Layer, factor: int) -> Floats:
    """What a sum of products counts in, by output channel."""
    steps: Floats = (layer.steps * factor).astype(np.float32)
    return steps


def _mask(index: int, channels: int, height: int, width: int) -> NDArray[np.bool_]:
    """True where pass ``index`` codes, (h, w, M)."""
    groups = np.arange(channels) // (channels // PASS_COUNT)
    mask: NDArray[np.bool_] = groups == group_map(index, height, width)[..., None]
    return mask
