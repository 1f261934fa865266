"""A second writing-out of the published networks, from their description alone, and golden vectors made with it.

    python -m tests.official.second_network OUT --profile me --size 256x192 --parts vae

Nothing of aeic or aeic_nets is imported: plain functions over a mapping from key names to weights, which are made from
the names as aeic_nets/official/golden_weights.py says. What this and `aeic bench goldens OUT --profile me` agree on was
computed twice. The picture's phase is searched, as for the published vectors, so that no latent lies near a rounding
boundary.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SIZES: dict[str, dict[str, Any]] = {
    "se": {"widths": (32, 64, 128, 192, 256), "depth": 1, "m": 256, "x": 512, "blocks": 3},
    "me": {"widths": (64, 128, 192, 256, 320), "depth": 2, "m": 320, "x": 960, "blocks": 4},
}
UNET = (320, 640, 1280, 1280)
ORDER = ("abcd", "dcba", "cdab", "badc")
STRIDES = {"lT": 31, "res": 25, "unet": 25, "image_preclamp": 37, "pass": 11, "base": 5, "x": 73}

_CODEC: dict[str, Tensor] = {}
"""The codec's tensors are kept: four passes and several pictures need them again."""


class Weights:
    """Tensors of one name space, made from their names; a prefix is put before the name."""

    def __init__(self, space: str, prefix: str = "") -> None:
        self.space, self.prefix = space, prefix

    def __call__(self, name: str, *shape: int) -> Tensor:
        known = _CODEC if self.space == "codec" else {}
        key = f"{self.prefix}{name}{shape}"
        if key not in known:
            known[key] = self.made(name, shape)
        return known[key]

    def made(self, name: str, shape: tuple[int, ...]) -> Tensor:
        seed = zlib.crc32(f"{self.space}/{self.prefix}{name}".encode())
        n = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
        leaf = name.rsplit(".", 1)[-1]
        if leaf.startswith("_matrix"):
            inner = 1 / 10 ** (1 / 5) / (1, 3, 3, 3, 3, 1)[int(leaf[-1]) + 1]
            n = math.log(math.expm1(inner)) + 0.1 * n
        elif leaf.startswith("_bias"):
            n = 0.25 * n
        elif leaf.startswith("_factor"):
            n = 0.1 * n
        elif len(shape) > 1:
            n = n / math.sqrt(np.prod(shape[1:]))
        else:
            n = 1 + 0.02 * n if leaf == "weight" else 0.02 * n
        return torch.from_numpy(n.astype(np.float32))

    def under(self, part: str) -> Weights:
        return Weights(self.space, f"{self.prefix}{part}.")


def conv(w: Weights, x: Tensor, out: int, kernel: tuple[int, int] = (1, 1), groups: int = 1) -> Tensor:
    weight = w("weight", out, x.shape[1] // groups, *kernel)
    return F.conv2d(x, weight, w("bias", out), padding=(kernel[0] // 2, kernel[1] // 2), groups=groups)


def down(w: Weights, x: Tensor, out: int) -> Tensor:
    return F.pixel_unshuffle(conv(w.under("body.0"), x, out // 4, (3, 3)), 2)


def up(w: Weights, x: Tensor, out: int) -> Tensor:
    return F.pixel_shuffle(conv(w.under("body.0"), x, out * 4, (3, 3)), 2)


def idw(w: Weights, x: Tensor) -> Tensor:
    q = x.shape[1] // 8
    parts = [x[:, : -3 * q]]
    for i, (name, kernel) in enumerate((("hw", (3, 3)), ("w", (1, 11)), ("h", (11, 1)))):
        end = x.shape[1] - (2 - i) * q
        parts.append(conv(w.under(f"dwconv_{name}"), x[:, end - q : end], q, kernel, groups=q))
    return torch.cat(parts, 1)


def norm(w: Weights, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).square().mean(1, keepdim=True)
    scale, shift = w("weight", x.shape[1]), w("bias", x.shape[1])
    return (x - mean) / (variance + 1e-6).sqrt() * scale[:, None, None] + shift[:, None, None]


def star(w: Weights, x: Tensor) -> Tensor:
    c = x.shape[1]
    h = conv(w.under("fc1"), norm(w.under("norm"), idw(w.under("dwconv"), x)), 4 * c)
    return x + conv(w.under("fc2"), F.gelu(h[:, : 2 * c]) * h[:, 2 * c :], c)


def inx(w: Weights, x: Tensor) -> Tensor:
    c = x.shape[1]
    return x + conv(w.under("conv2"), F.gelu(conv(w.under("conv1"), idw(w.under("depthconv"), x), 2 * c)), c)


def gated(w: Weights, x: Tensor) -> Tensor:
    c = x.shape[1]
    h = conv(w.under("fc1"), norm(w.under("norm"), x), 4 * c)
    v = conv(w.under("conv"), h[:, 2 * c :], 2 * c, (3, 3), groups=2 * c)
    return x + conv(w.under("fc2"), F.gelu(h[:, : 2 * c]) * v, c)


def adapter(w: Weights, x: Tensor, out: int) -> Tensor:
    m = (x.shape[1] + out) // 2
    h = F.gelu(conv(w.under("branch1.0"), x, m))
    h = F.gelu(conv(w.under("branch1.2"), h, m, (5, 5), groups=m))
    return conv(w.under("branch1.4"), h, out) + conv(w.under("branch2"), x, out)


def analysis(w: Weights, x: Tensor, sizes: dict[str, Any]) -> Tensor:
    n = 0
    for width in sizes["widths"]:
        x = down(w.under(f"g_a.analysis_transform.{n}"), x, width)
        for i in range(sizes["depth"]):
            x = star(w.under(f"g_a.analysis_transform.{n + 1 + i}"), x)
        n += 1 + sizes["depth"]
    return x


def hyper(w: Weights, y: Tensor, m: int) -> Tensor:
    part = [w.under(f"h_a.reduction.{i}") for i in range(4)]
    return down(part[3], star(part[2], star(part[1], down(part[0], y, m // 2))), m // 2)


def hyper_back(w: Weights, z: Tensor, m: int) -> Tensor:
    part = [w.under(f"h_s.increase.{i}") for i in range(4)]
    return up(part[3], star(part[2], star(part[1], up(part[0], z, m // 2))), m)


def context(w: Weights, i: int, base: Tensor, sizes: dict[str, Any]) -> Tensor:
    x = adapter(w.under(f"adapter_in.{i}"), base, sizes["x"])
    for j in range(sizes["blocks"]):
        block = w.under(f"g_c.block.{j}.blocks")
        x = gated(block.under("1"), inx(block.under("0"), x))
    return adapter(w.under(f"adapter_out.{i}"), x, 2 * sizes["m"])


def synthesis(w: Weights, y: Tensor) -> Tensor:
    part = [w.under(f"g_s.synthesis_transform.{i}") for i in range(10)]
    x = star(part[2], star(part[1], adapter(part[0], y, 1024)))
    x = star(part[5], star(part[4], up(part[3], x, 768)))
    return adapter(part[9], star(part[8], star(part[7], up(part[6], x, 512))), 576)


def pass_mask(i: int, shape: torch.Size) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    quarter = shape[1] // 4
    for group, place in enumerate(ORDER[i]):
        row, column = divmod("abcd".index(place), 2)
        mask[:, group * quarter : (group + 1) * quarter, row::2, column::2] = True
    return mask


def flow(w: Weights, y: Tensor, sizes: dict[str, Any], reflect: bool, zero: bool) -> dict[str, Tensor]:
    m, (height, width) = sizes["m"], y.shape[-2:]
    pad = (0, -width % 4, 0, -height % 4)
    z = hyper(w, F.pad(y, pad, mode="reflect") if reflect and any(pad) else F.pad(y, pad), m)
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(b"codec/entropy_bottleneck.quantiles")))
    medians = torch.from_numpy((0.3 * draw.standard_normal((m // 2, 1, 3))[:, 0, 1]).astype(np.float32))[:, None, None]
    symbols = (z - medians).round()
    out = {"y": y, "z": z, "z_sym": symbols, "h_s": hyper_back(w, symbols + medians, m)}
    base = out["h_s"][..., :height, :width]
    means, scales, y_sym = (torch.zeros_like(y) for _ in range(3))
    coded: list[Tensor] = []
    for i in range(4):
        raw = context(w, i, base, sizes)
        out |= {f"base{i}": base, f"pass{i}_out": raw}
        mask, q = pass_mask(i, y.shape), (y - raw[:, :m]).round()
        if zero:
            q = torch.where(raw[:, m:] < 0.08, 0, q)
        for total, part in ((means, raw[:, :m]), (scales, raw[:, m:]), (y_sym, q)):
            total[mask] = part[mask]
        base = torch.where(mask, q + raw[:, :m], base)
        coded.append((q * mask)[0].unflatten(0, (4, m // 4)).sum(0).flatten())
    out |= {"means": means, "scales": scales, "y_sym": y_sym, "y_hat": base, "coded_sym": torch.cat(coded)}
    return out


class Merged(Weights):
    """SD-Turbo's UNet with the LoRA of the checkpoint in it."""

    def __init__(self, prefix: str = "") -> None:
        super().__init__("sd_unet", prefix)

    def under(self, part: str) -> Merged:
        return Merged(f"{self.prefix}{part}.")

    def __call__(self, name: str, *shape: int) -> Tensor:
        module = self.prefix.removesuffix(".")
        if module in ("conv_in", "conv_out"):
            return Weights("unet_ckpt")(f"{module}.{name}", *shape)
        value = super().__call__(name, *shape)
        if name != "weight" or len(shape) == 1:
            return value
        kernel = shape[2:]
        a = Weights("unet_ckpt")(f"{module}.lora_A.default.weight", 32, shape[1], *kernel)
        b = Weights("unet_ckpt")(f"{module}.lora_B.default.weight", shape[0], 32, *(1 for _ in kernel))
        return value + 0.25 * (b.reshape(shape[0], 32) @ a.reshape(32, -1)).reshape(shape)


def group_norm(w: Weights, x: Tensor, eps: float) -> Tensor:
    return F.group_norm(x, 32, w("weight", x.shape[1]), w("bias", x.shape[1]), eps)


def resnet(w: Weights, x: Tensor, out: int, eps: float) -> Tensor:
    h = conv(w.under("conv1"), F.silu(group_norm(w.under("norm1"), x, eps)), out, (3, 3))
    h = conv(w.under("conv2"), F.silu(group_norm(w.under("norm2"), h, eps)), out, (3, 3))
    return h + (x if x.shape[1] == out else conv(w.under("conv_shortcut"), x, out))


def linear(w: Weights, x: Tensor, out: int, bias: bool = True) -> Tensor:
    return F.linear(x, w("weight", out, x.shape[-1]), w("bias", out) if bias else None)


def attention(w: Weights, x: Tensor, heads: int, bias: bool) -> Tensor:
    c = x.shape[-1]
    q, k, v = (linear(w.under(f"to_{n}"), x, c, bias).unflatten(-1, (heads, -1)).transpose(1, 2) for n in "qkv")
    scores = (q @ k.transpose(-1, -2) / math.sqrt(c // heads)).softmax(-1)
    return linear(w.under("to_out.0"), (scores @ v).transpose(1, 2).flatten(2), c)


def transformer(w: Weights, x: Tensor) -> Tensor:
    c, block = x.shape[1], w.under("transformer_blocks.0")
    layer_norm = lambda n, t: F.layer_norm(t, (c,), block(f"{n}.weight", c), block(f"{n}.bias", c), 1e-5)  # noqa: E731
    t = linear(w.under("proj_in"), group_norm(w.under("norm"), x, 1e-6).flatten(2).transpose(1, 2), c)
    t = t + attention(block.under("attn1"), layer_norm("norm1", t), c // 64, bias=False)
    h, g = linear(block.under("ff.net.0.proj"), layer_norm("norm3", t), 8 * c).chunk(2, -1)
    t = t + linear(block.under("ff.net.2"), h * F.gelu(g), c)
    return x + linear(w.under("proj_out"), t, c).transpose(1, 2).unflatten(2, x.shape[2:])


def unet(x: Tensor) -> Tensor:
    w = Merged()
    x = conv(w.under("conv_in"), x, 320, (3, 3))
    skips = [x]
    for i, c in enumerate(UNET):
        for j in range(2):
            x = resnet(w.under(f"down_blocks.{i}.resnets.{j}"), x, c, 1e-5)
            x = transformer(w.under(f"down_blocks.{i}.attentions.{j}"), x) if i < 3 else x
            skips.append(x)
        if i < 3:
            at = w.under(f"down_blocks.{i}.downsamplers.0.conv")
            x = F.conv2d(x, at("weight", c, c, 3, 3), at("bias", c), stride=2, padding=1)
            skips.append(x)
    x = resnet(w.under("mid_block.resnets.0"), x, 1280, 1e-5)
    x = resnet(w.under("mid_block.resnets.1"), transformer(w.under("mid_block.attentions.0"), x), 1280, 1e-5)
    for i, c in enumerate(reversed(UNET)):
        for j in range(3):
            x = resnet(w.under(f"up_blocks.{i}.resnets.{j}"), torch.cat((x, skips.pop()), 1), c, 1e-5)
            x = transformer(w.under(f"up_blocks.{i}.attentions.{j}"), x) if i > 0 else x
        if i < 3:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = conv(w.under(f"up_blocks.{i}.upsamplers.0.conv"), x, c, (3, 3))
    return conv(w.under("conv_out"), F.silu(group_norm(w.under("conv_norm_out"), x, 1e-5)), 256, (3, 3))


def picture(averages: Tensor) -> Tensor:
    """Channel averages (1, 4, h, w): the half decoder's first convolution takes nothing else of its 256 inputs."""
    w = Weights("half", "decoder.")
    x = conv(w.under("conv_in"), averages, 256, (3, 3))
    x = resnet(w.under("mid_block.resnets.0"), x, 256, 1e-6)
    at = w.under("mid_block.attentions.0")
    tokens = group_norm(at.under("group_norm"), x, 1e-6).flatten(2).transpose(1, 2)
    x = x + attention(at, tokens, 1, bias=True).transpose(1, 2).unflatten(2, x.shape[2:])
    x = resnet(w.under("mid_block.resnets.1"), x, 256, 1e-6)
    for i, c in enumerate((256, 256, 128, 64)):
        for j in range(3):
            x = resnet(w.under(f"up_blocks.{i}.resnets.{j}"), x, c, 1e-6)
        if i < 3:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = conv(w.under(f"up_blocks.{i}.upsamplers.0.conv"), x, c, (3, 3))
    return conv(w.under("conv_out"), F.silu(group_norm(w.under("conv_norm_out"), x, 1e-6)), 3, (3, 3))


def golden_picture(height: int, width: int, phase: float) -> Tensor:
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for c in range(3):
        a = np.sin(2 * np.pi * ((3 + c) * x / width + (2 - c) * y / height) + 0.7 * c + phase)
        b = np.sin(2 * np.pi * (x**2 + (c + 1) * y**2) / (24 * width))
        planes.append(0.45 * a + 0.3 * b + 0.25 * np.where((x // (8 * (c + 1)) + y // 16) % 2 == 0, 1, -1))
    return torch.from_numpy(np.stack(planes)[None].astype(np.float32))


def margins(found: dict[str, Tensor]) -> dict[str, float]:
    """How near a flow comes to a rounding boundary of y, and to the scale below which nothing is coded."""
    exact = found["y"] - found["means"]
    rounding = float((0.5 - (exact - exact.round()).abs()).min())
    return {"round": rounding, "scale": float((found["scales"] - 0.08).abs().min())}


@torch.inference_mode()
def make(
    profile: str, height: int, width: int, parts: int, phases: Sequence[float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of golden_PROFILE.npz, and its part of golden_meta.json."""
    sizes, w = SIZES[profile], Weights("codec")
    best: tuple[float, float, dict[str, dict[str, Tensor]]] = (-1.0, 0.0, {})
    safe: dict[str, dict[str, float]] = {}
    for phase in phases:
        x = golden_picture(height, width, phase)
        y = analysis(w, x, sizes)
        made = {"A": flow(w, y, sizes, False, False), "C": flow(w, y, sizes, True, True)}
        near = {letter: margins(found) for letter, found in made.items()}
        near["A"].pop("scale")  # skips nothing
        margin = min(value for each in near.values() for value in each.values())
        if margin > best[0]:
            best, safe = (margin, phase, made), near
    _, phase, made = best
    arrays = {"x": golden_picture(height, width, phase)}
    for letter, found in made.items():
        arrays |= {f"{letter}_{name}": value for name, value in found.items()}
        if parts > 1:
            latent, residual = synthesis(w, found["y_hat"]).split((320, 256), 1)
            arrays |= {f"{letter}_lT": latent, f"{letter}_res": residual}
        if parts > 2:
            features = unet(latent)
            averages = (features + residual).unflatten(1, (64, 4)).mean(1)
            arrays |= {f"{letter}_unet": features, f"{letter}_l0_groupmean4": averages}
        if parts > 3:
            arrays[f"{letter}_image_preclamp"] = picture(averages)
            small = arrays[f"{letter}_image_preclamp"].clamp(-1, 1)[0, :, ::4, ::4]
            arrays[f"{letter}_image_clamped_sub4_f16"] = small.half()
    stored: dict[str, Any] = {}
    meta: dict[str, Any] = {"phase": phase, "tensors": {}, "margins": safe}
    for name, value in arrays.items():
        what = name.rpartition("_")[2] if name.startswith("x") else name[2:]
        stride = (
            next((n for start, n in STRIDES.items() if what.startswith(start)), None) if "f16" not in name else None
        )
        meta["tensors"][name] = {"shape": list(value.shape)} | ({"stride": stride} if stride else {})
        array = value.numpy().astype(np.int8) if name.endswith("_sym") else value.numpy()
        stored[f"{name}__sub" if stride else name] = array.reshape(-1)[::stride] if stride else array
    return stored, meta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--profile", choices=sorted(SIZES), default="me")
    parser.add_argument("--size", default="192x256", help="WIDTHxHEIGHT")
    parser.add_argument("--parts", choices=("codec", "g_s", "unet", "vae"), default="vae")
    parser.add_argument("--phases", type=int, default=4, help="pictures to choose from")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    parts = ("codec", "g_s", "unet", "vae").index(options.parts) + 1
    stored, meta = make(options.profile, height, width, parts, [round(0.35 * i, 2) for i in range(options.phases)])
    options.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out / f"golden_{options.profile.upper()}.npz", **stored)
    (options.out / "golden_meta.json").write_text(json.dumps({options.profile.upper(): meta}))
    print(f"phase {meta['phase']}, distance from the nearest boundaries {meta['margins']}")


if __name__ == "__main__":
    main()
