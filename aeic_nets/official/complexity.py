"""Counts parameters and multiply-adds of a profile on meta tensors, without weights, beside the published table.

    aeic bench complexity [--size 768x512]

Rules: one MAC is one multiply-add of a convolution or linear layer. Biases, norms, activations and element-wise work do
not count. Attention products are listed separately, because they grow with the picture. The unit is thousands of MACs
per picture pixel. Encoding is g_a, h_a, h_s and four context passes. The published decoding figures count the LoRA
beside its layers and, in parameters, everything but g_a; what is really run is merged, folded and without h_a, and
stands beside them. The last line is JSON. Exit 1 if a figure is more than 0.3 % off.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from aeic import profiles
from aeic.passes import PASS_COUNT
from aeic.profiles import HYPER_STRIDE, LATENT_STRIDE, PICTURE_MULTIPLE, Profile
from aeic_nets.folding import shrink
from aeic_nets.network import AEIC
from aeic_nets.official.keys import LORA_RANK, lora_modules

PUBLISHED = {
    "se": {"encode_params": 16.10, "encode_macs": 46.02, "decode_params": 913.66, "decode_macs": 2762.22},
    "me": {"encode_params": 55.91, "encode_macs": 204.26, "decode_params": 951.47, "decode_macs": 2884.88},
}
LIMIT = 0.003
_OFFICIAL = tuple(PUBLISHED)


class Counter:
    """MACs by module name, of all modules that run inside :meth:`watch`."""

    def __init__(self) -> None:
        self.macs: dict[str, int] = defaultdict(int)
        self.lora: dict[str, int] = defaultdict(int)
        self.attention: dict[str, int] = defaultdict(int)

    @contextmanager
    def watch(self, part: str, module: nn.Module, adapted: set[int]) -> Iterator[None]:
        """Add the counts to ``part``. ``adapted`` are the ids of the layers with a LoRA."""

        def layer(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight = layer.weight
            kernel = weight[0].numel()  # inputs of one output element
            self.macs[part] += output.numel() * kernel
            if id(layer) in adapted:
                places = output.numel() // weight.shape[0]
                self.lora[part] += places * LORA_RANK * (kernel + weight.shape[0])

        def attention(layer: Attention, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            tokens = output.shape[1] if output.ndim == 3 else output.shape[2] * output.shape[3]
            self.attention[part] += 2 * output.shape[0] * tokens**2 * layer.inner_dim

        handles = []
        for child in module.modules():
            if isinstance(child, nn.Conv2d | nn.Linear):
                handles.append(child.register_forward_hook(layer))
            elif isinstance(child, Attention):
                handles.append(child.register_forward_hook(attention))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@torch.inference_mode()
def count(profile: Profile, height: int, width: int) -> dict[str, Any]:
    """Millions of parameters and thousands of MACs per pixel, as published and as run, with parts."""
    published = profile.name in _OFFICIAL
    with torch.device("meta"):
        model = AEIC(profile).eval()
        whole = _run(model, height, width)
        params = _parameters(model)
        lora = sum(LORA_RANK * (m.weight.shape[0] + m.weight[0].numel()) for _, m in lora_modules(model.unet)) / 1e6
        if published:
            shrink(model)
        folded = _run(model, height, width)
        run_params = _parameters(model)
    pixels = height * width
    encode = ("g_a", "h_a", "h_s", "context")
    generate = ("g_s", "unet", "vae")
    encode_params = sum(params[part] for part in (*encode, "entropy_bottleneck"))
    decode_params = sum(params.values()) - params["g_a"] + (lora if published else 0.0)
    macs = {part: whole.macs[part] / pixels / 1e3 for part in (*encode, *generate)}
    as_run = {part: folded.macs[part] / pixels / 1e3 for part in (*encode, *generate)}
    entropy = macs["h_s"] + macs["context"]
    lora_macs = whole.lora["unet"] / pixels / 1e3 if published else 0.0
    run_entropy = ("h_s", "context", "entropy_bottleneck")
    attention = {part: whole.attention[part] / pixels / 1e3 for part in ("unet", "vae")}
    return {
        "encode_params": encode_params,
        "encode_macs": sum(macs[part] for part in encode),
        "decode_params": decode_params,
        "decode_macs": entropy + sum(macs[part] for part in generate) + lora_macs,
        "as_run": {
            "encode_params": encode_params,
            "encode_macs": sum(macs[part] for part in encode),
            "decode_params": sum(run_params[part] for part in (*run_entropy, *generate)),
            "decode_macs": entropy + sum(as_run[part] for part in generate),
            "attention_macs": sum(attention.values()),
        },
        "params_by_part": params | ({"lora": lora} if published else {}),
        "macs_by_part": macs | ({"lora": lora_macs} if published else {}),
        "attention_macs": attention,
    }


def _run(model: AEIC, height: int, width: int) -> Counter:
    """One encode and one decode; the entropy part, which both sides run, is counted once."""
    codec, counter, profile = model.codec, Counter(), model.profile
    adapted = {id(module) for _, module in lora_modules(model.unet)}
    padded = [math.ceil(side / PICTURE_MULTIPLE) * PICTURE_MULTIPLE for side in (height, width)]
    latent = [side // LATENT_STRIDE for side in padded]
    hyper = [math.ceil(side / HYPER_STRIDE) * HYPER_STRIDE for side in latent]
    y = torch.empty(1, profile.latent_channels, *latent, device="meta")

    def watched(part: str, module: nn.Module, x: Tensor) -> Any:
        with counter.watch(part, module, adapted):
            return module(x)

    watched("g_a", codec.g_a, torch.empty(1, 3, *padded, device="meta"))
    z = watched("h_a", codec.h_a, torch.empty(1, profile.latent_channels, *hyper, device="meta"))
    watched("h_s", codec.h_s, z)
    for i in range(PASS_COUNT):
        x = watched("context", codec.adapter_in[i], y)
        watched("context", codec.adapter_out[i], watched("context", codec.g_c, x))
    features, residual = watched("g_s", codec.g_s, y)
    watched("vae", model.vae, watched("unet", model.unet, features) + residual)
    return counter


def _parameters(model: AEIC) -> dict[str, float]:
    codec = model.codec
    parts: dict[str, list[nn.Module]] = {
        "g_a": [codec.g_a],
        "h_a": [codec.h_a],
        "h_s": [codec.h_s],
        "context": [codec.adapter_in, codec.g_c, codec.adapter_out],
        "entropy_bottleneck": [codec.entropy_bottleneck],
        "g_s": [codec.g_s],
        "unet": [model.unet],
        "vae": [model.vae],
    }
    return {
        name: sum(p.numel() for module in modules for p in module.parameters()) / 1e6 for name, modules in parts.items()
    }


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="aeic bench complexity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="768x512", help="width x height of the picture, such as 1920x1088")
    options = parser.parse_args(argv)
    try:
        width, height = (int(side) for side in options.size.split("x"))
        if not 16 <= min(width, height) <= max(width, height) <= 8192:
            raise ValueError
    except ValueError:
        parser.error(f"--size {options.size}: give width x height, each 16 to 8192, such as 768x512")
    units = {"params": "M", "macs": "K/px"}
    found: dict[str, Any] = {}
    worst = 0.0
    print(f"{'':24}{'published':>12}{'counted':>12}{'difference':>12}{'as run':>12}")
    for name in (*_OFFICIAL, "nano"):
        counted = count(profiles.profile(name), height, width)
        found[name] = counted
        for figure in ("encode_params", "encode_macs", "decode_params", "decode_macs"):
            value, wanted = counted[figure], PUBLISHED.get(name, {}).get(figure)
            label = f"{name} {figure.replace('_', ' ')} ({units[figure.split('_')[1]]})"
            row = f"{label:24}{wanted if wanted is not None else '-':>12}{value:>12.3f}"
            if wanted is not None:
                worst = max(worst, abs(value / wanted - 1))
                row += f"{100 * (value / wanted - 1):>+11.3f}%"
            else:
                row += f"{'-':>12}"
            print(row + f"{counted['as_run'][figure]:>12.3f}")
        unet, vae = counted["attention_macs"].values()
        print(f"{name} attention products, not in the above (K/px): UNet {unet:.2f}, picture decoder {vae:.2f}")
    ok = worst <= LIMIT
    summary = {"size": options.size, "ok": ok, "worst_difference": round(worst, 6), "published": PUBLISHED}
    print(json.dumps(summary | _rounded(found)))
    return 0 if ok else 1


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return round(value, 4)


if __name__ == "__main__":
    raise SystemExit(main())
