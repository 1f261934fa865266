"""Large pictures as the research code decodes them: the UNet and the picture decoder in tiles, with its defaults.

Reproduces its peculiarities, to match its pictures: the blend is half a sample off down the picture, group norms of the
picture decoder pool tile statistics, and attention stays inside a tile. Source: docs/model.md section 8.5, read in
the authors' code and not covered by golden vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

UNET_TILES = {"se": (192, 64), "me": (96, 32)}
"""Tile and overlap in samples of the UNet, 8 pixels each."""
VAE_TILE, VAE_MARGIN = 160, 11
_SCALE = 8
_SPREAD = 0.02
_EPS = 1e-6

Steps = Generator[tuple[Any, Tensor], Tensor, Tensor]
"""Yields a group norm and its input, is sent the input normed, returns the picture."""


def blend_tiles(network: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, batch: int = 1) -> Tensor:
    """``network`` over overlapping tiles of x (N, C, H, W), blended by bell-shaped weights; whole if H W <= tile².

    Tiles are square. In a panorama whose shorter side is not over ``overlap``, they overlap by half of that side: with
    the research code's grid, most of the picture would lie in no tile.
    """
    height, width = x.shape[-2:]
    if height * width <= tile * tile:
        return network(x)
    size = min(tile, height, width)
    if size <= overlap:
        overlap = size // 2
    corners = [(top, left) for top in _starts(height, size, overlap) for left in _starts(width, size, overlap)]
    # In float32 at least: float16 has no numbers as small as the weights of a tile's corners.
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = (_bell(size, size / 2)[:, None] * _bell(size, (size - 1) / 2)).to(x.device, wide)
    total, out = x.new_zeros(height, width, dtype=wide), None
    for at in range(0, len(corners), batch):
        some = corners[at : at + batch]
        made = network(torch.cat([x[..., top : top + size, left : left + size] for top, left in some]))
        if out is None:
            out = made.new_zeros(len(x), made.shape[1], height, width, dtype=wide)
        for (top, left), piece in zip(some, made.split(len(x)), strict=True):
            out[..., top : top + size, left : left + size] += piece * weight
            total[top : top + size, left : left + size] += weight
    assert out is not None
    return out / total


@dataclass(frozen=True)
class Span:
    """One axis of a tile of the picture decoder: samples ``read``, and of its output those ``kept`` (whole picture)."""

    read: tuple[int, int]
    kept: tuple[int, int]


def decode_tiled(decoder: Decoder, x: Tensor, tile: int = VAE_TILE, margin: int = VAE_MARGIN) -> Tensor:
    """The picture decoder over x (N, C, H, W), in tiles if a side is over tile + 2 margin; (N, 3, 8H, 8W)."""
    height, width = x.shape[-2:]
    if max(height, width) <= tile + 2 * margin:
        return decoder(x)
    spans = [(down, across) for down in _spans(height, tile, margin) for across in _spans(width, tile, margin)]
    pieces = _in_step([_steps(decoder, x[..., slice(*down.read), slice(*across.read)]) for down, across in spans])
    out = x.new_zeros(len(x), decoder.conv_out.out_channels, height * _SCALE, width * _SCALE)
    for (down, across), piece in zip(spans, pieces, strict=True):
        (top, bottom), (left, right) = down.kept, across.kept
        inside = piece[
            ...,
            (top - down.read[0]) * _SCALE : (bottom - down.read[0]) * _SCALE,
            (left - across.read[0]) * _SCALE : (right - across.read[0]) * _SCALE,
        ]
        out[..., top * _SCALE : bottom * _SCALE, left * _SCALE : right * _SCALE] = inside
    return out


def _starts(side: int, size: int, overlap: int) -> list[int]:
    count = max(1, math.ceil((side - overlap) / (size - overlap)))
    return [min(i * (size - overlap), side - size) for i in range(count)]


def _bell(size: int, middle: float) -> Tensor:
    p = torch.arange(size, dtype=torch.float64)
    return torch.exp(-((p - middle) ** 2) / (size * size * _SPREAD)) / math.sqrt(_SPREAD * math.pi)


def _spans(side: int, tile: int, margin: int) -> list[Span]:
    inner = side - 2 * margin
    count = max(1, math.ceil(inner / tile))
    size = _rounded_up(math.ceil(inner / count), tile)
    spans = []
    for i in range(count):
        start, end = margin + i * size, min(margin + (i + 1) * size, side)
        kept = (start if start > margin else 0, end if end < side - margin else side)
        spans.append(Span((max(0, start - margin), min(side, end + margin)), kept))
    return spans


def _rounded_up(size: int, limit: int) -> int:
    for multiple in (32, 16, 8, 4, 2):
        raised = math.ceil(size / multiple) * multiple
        if raised <= limit:
            return raised
    return size


def _in_step(tiles: list[Steps]) -> list[Tensor]:
    """Runs all tiles from norm to norm; each norm uses the pixel-weighted means of all tiles' statistics."""
    waiting = [next(tile) for tile in tiles]
    while True:
        norm = waiting[0][0]
        inputs = [x for _, x in waiting]
        pixels = torch.tensor([float(x.shape[-2] * x.shape[-1]) for x in inputs])
        shares = pixels / pixels.sum()
        grouped = [x.unflatten(1, (norm.num_groups, -1)).flatten(2) for x in inputs]
        # In float32, as autocast computes group norms: float16 does not reach to a usual variance.
        mean = sum(g.float().mean(dim=2) * share for g, share in zip(grouped, shares.tolist(), strict=True))
        variance = sum(
            g.float().var(dim=2, correction=0) * share for g, share in zip(grouped, shares.tolist(), strict=True)
        )
        waiting, results = [], []
        for tile, x in zip(tiles, inputs, strict=True):
            try:
                waiting.append(tile.send(_normalised(x, norm, mean, variance)))
            except StopIteration as end:
                results.append(end.value)
        if results:
            return results


def _normalised(x: Tensor, norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> Tensor:
    per = x.shape[1] // norm.num_groups
    mean, variance = (value.repeat_interleave(per, dim=1)[..., None, None] for value in (mean, variance))
    return (x - mean) / (variance + _EPS).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def _steps(decoder: Decoder, x: Tensor) -> Steps:
    """The decoder on one tile; stops before each group norm, and continues with what it is sent."""
    x = decoder.conv_in(x)
    x = yield from _residual(decoder.mid_block.resnets[0], x)
    for attention, resnet in zip(decoder.mid_block.attentions, decoder.mid_block.resnets[1:], strict=True):
        if attention is not None:
            normed = yield attention.group_norm, x
            x = x + _attend(attention, normed)
        x = yield from _residual(resnet, x)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = yield from _residual(resnet, x)
        for upsampler in block.upsamplers or ():
            x = upsampler(x)
    x = yield decoder.conv_norm_out, x
    made: Tensor = decoder.conv_out(F.silu(x))
    return made


def _residual(block: ResnetBlock2D, x: Tensor) -> Steps:
    normed = yield block.norm1, x
    h = block.conv1(F.silu(normed))
    normed = yield block.norm2, h
    h = block.conv2(F.silu(normed))
    made: Tensor = h + (block.conv_shortcut(x) if block.conv_shortcut is not None else x)
    return made


def _attend(attention: nn.Module, x: Tensor) -> Tensor:
    """One head over all positions of x (N, C, H, W), already normed."""
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (layer(tokens)[:, None] for layer in (attention.to_q, attention.to_k, attention.to_v))
    out = attention.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
    return out.transpose(1, 2).unflatten(2, x.shape[-2:])
