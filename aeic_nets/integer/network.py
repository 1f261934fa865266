"""The only definition of the entropy model: h_s, the adapters and the context network over abstract operations.

It has two kinds of values. *Codes* are integers of 8 (or 16) bits with a power-of-two step per channel; convolutions
take them. A *stream* is float32 on the residual paths. It holds only multiples of a power of two with few bits, so that
additions to it are exact. An interpreter decides how to compute an operation, and every interpreter must give the same
numbers, bit for bit.

Names are those of the codec's parameters; ``.u``/``.v`` are the two halves of a block's fc1, with the norm's scale and
shift folded in. Source: docs/model.md sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from aeic_nets.integer.model import Sizes

S = TypeVar("S")
C = TypeVar("C")


class Ops(Protocol[S, C]):
    """The operations of an interpreter. ``site`` and ``layer`` are keys of ``IntegerModel.sites`` and ``.layers``."""

    def quantise(self, x: S, site: str) -> C:
        """Clip and round (half to even) to the site's codes."""

    def stream(self, x: C) -> S:
        """The numbers that codes stand for, exactly."""

    def settle(self, x: S, site: str) -> S:
        """Clip and round a stream to the multiples of the site. The result is a stream."""

    def add(self, a: S, b: S) -> S:
        """Exact sum."""

    def conv(self, x: C, layer: str) -> C:
        """Integer convolution, zero padding that keeps the size; rounded at the site named as the layer."""

    def wide(self, x: C, layer: str) -> S:
        """The same, not rounded to codes: float32 of the integer sum times its step (limb sums added in order)."""

    def plus(self, a: S, b: S) -> S:
        """Sum of two wide results: one float32 addition, correctly rounded."""

    def gelu(self, x: C, site: str) -> C:
        """GELU by table."""

    def gate(self, a: C, b: C, site: str) -> C:
        """Elementwise product (exact), rounded at the site."""

    def norm(self, x: S, site: str) -> C:
        """(x - mean) / deviation over the channels of a position, rounded at the site."""

    def split(self, x: C, sizes: Sequence[int]) -> list[C]:
        """Split by channels."""

    def concat(self, parts: Sequence[C]) -> C:
        """Concatenate by channels. Each part keeps its steps."""

    def shuffle(self, x: S) -> S:
        """Pixel shuffle by 2: (4c, H, W) to (c, 2H, 2W)."""

    def coded(self, x: C, index: int) -> C:
        """Mark a value: of the result of ``wide``, only the elements that pass ``index`` codes are needed."""

    def halves(self, x: S) -> tuple[S, S]:
        """Two equal parts by channels."""


def inception(ops: Ops[S, C], x: C, channels: int, name: str) -> C:
    q = channels // 8
    same, square, wide, high = ops.split(x, (channels - 3 * q, q, q, q))
    mixed = [ops.conv(part, f"{name}.dwconv_{way}") for way, part in (("hw", square), ("w", wide), ("h", high))]
    return ops.concat([same, *mixed])


def star_block(ops: Ops[S, C], x: S, channels: int, name: str) -> S:
    mixed = inception(ops, ops.quantise(x, f"{name}.in"), channels, f"{name}.dwconv")
    normed = ops.norm(ops.stream(mixed), f"{name}.norm")
    u = ops.gelu(ops.conv(normed, f"{name}.fc1.u"), f"{name}.gelu")
    gated = ops.gate(u, ops.conv(normed, f"{name}.fc1.v"), f"{name}.gate")
    return ops.add(x, ops.stream(ops.conv(gated, f"{name}.fc2")))


def inception_next(ops: Ops[S, C], x: S, channels: int, name: str) -> S:
    mixed = inception(ops, ops.quantise(x, f"{name}.in"), channels, f"{name}.depthconv")
    hidden = ops.gelu(ops.conv(mixed, f"{name}.conv1"), f"{name}.gelu")
    return ops.add(x, ops.stream(ops.conv(hidden, f"{name}.conv2")))


def gated_block(ops: Ops[S, C], x: S, name: str) -> S:
    normed = ops.norm(x, f"{name}.norm")
    u = ops.gelu(ops.conv(normed, f"{name}.fc1.u"), f"{name}.gelu")
    v = ops.conv(ops.conv(normed, f"{name}.fc1.v"), f"{name}.conv")
    return ops.add(x, ops.stream(ops.conv(ops.gate(u, v, f"{name}.gate"), f"{name}.fc2")))


def adapter_hidden(ops: Ops[S, C], x: C, name: str) -> C:
    """An adapter's first branch up to its last layer."""
    first = ops.gelu(ops.conv(x, f"{name}.branch1.0"), f"{name}.branch1.1")
    return ops.gelu(ops.conv(first, f"{name}.branch1.2"), f"{name}.branch1.3")


def upsample(ops: Ops[S, C], x: S, name: str) -> S:
    codes = ops.quantise(x, f"{name}.in")
    return ops.shuffle(ops.settle(ops.wide(codes, f"{name}.body.0"), f"{name}.out"))


def hyper_synthesis(ops: Ops[S, C], z: S, sizes: Sizes, name: str = "h_s") -> S:
    """z (N, Cz, hz, wz), symbols plus medians, to the first base (N, M, 4hz, 4wz)."""
    x = upsample(ops, z, f"{name}.increase.0")
    for block in (1, 2):
        x = star_block(ops, x, sizes.hyper_channels, f"{name}.increase.{block}")
    return upsample(ops, x, f"{name}.increase.3")


def context(ops: Ops[S, C], index: int, base: S, sizes: Sizes) -> tuple[S, S]:
    """Pass ``index``: base (N, M, h, w) to means (rounded to their grid) and wide scales, each (N, M, h, w).

    Only the elements that the pass codes are defined. A lowering may omit the others.
    """
    name = f"adapter_in.{index}"
    codes = ops.quantise(base, f"{name}.in")
    hidden = adapter_hidden(ops, codes, name)
    joined = ops.plus(ops.wide(hidden, f"{name}.branch1.4"), ops.wide(codes, f"{name}.branch2"))
    x = ops.settle(joined, f"{name}.out")
    for block in range(sizes.context_depth):
        x = inception_next(ops, x, sizes.context_width, f"g_c.block.{block}.blocks.0")
        x = gated_block(ops, x, f"g_c.block.{block}.blocks.1")
    name = f"adapter_out.{index}"
    codes = ops.quantise(x, f"{name}.in")
    hidden = adapter_hidden(ops, codes, name)
    hidden, codes = ops.coded(hidden, index), ops.coded(codes, index)
    means, scales = ops.halves(ops.plus(ops.wide(hidden, f"{name}.branch1.4"), ops.wide(codes, f"{name}.branch2")))
    return ops.settle(means, "means"), scales
