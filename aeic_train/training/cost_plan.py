"""What a recipe costs before it is run: memory, FLOPs and hours for one and eight cards.

    aeic train --recipe aeic_train/recipes/se.toml --plan

Multiply-adds are counted on tensors without memory (aeic_nets/official/complexity.py), and so are the bytes that the
backward pass keeps. Hours assume that a card reaches UTILISATION of its dense bfloat16 speed, and that eight cards are
eight times as fast. They are estimates; nothing was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from aeic import profiles
from aeic.passes import PASS_COUNT
from aeic.profiles import Profile
from aeic_nets.network import AEIC
from aeic_nets.official import lora
from aeic_nets.official.complexity import count
from aeic_nets.official.keys import TRAINED_ENDS
from aeic_train.training.full_size import recomputed_blocks
from aeic_train.training.recipe import Recipe, Stage

CARDS = {"RTX 3090": (71, 24), "RTX 4090": (165, 24), "A100": (312, 80), "H100": (989, 80)}
"""Dense bfloat16 TFLOPS and GB of memory, from the makers' data sheets."""
UTILISATION = 0.3
"""Share of that speed. One crop at a time keeps a card less busy than large batches do."""
FEATURES_MACS, VGG_MACS, CLIP_MACS = 8e3, 306e3, 4.4e9
"""Multiply-adds of the networks of the losses: EfficientNet-lite0 and VGG-16 a pixel, CLIP ViT-B/32 a crop."""
BYTES = 2
"""Bytes of a kept activation, in bfloat16."""


@dataclass(frozen=True)
class Sizes:
    """Millions of parameters, and gigabytes kept for the backward pass of one crop."""

    trained: float
    still: float
    kept: float
    kept_recomputed: float


class _Kept:
    """Counts the bytes that autograd saves, for each block that may be computed again, and outside of them."""

    def __init__(self, parameters: set[int]) -> None:
        self.parameters = parameters
        self.seen: dict[int, Any] = {}  # kept alive, so that no address is used twice
        self.blocks: list[int] = []
        self.inputs = self.outside = 0
        self.inside = False

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.parameters and storage._cdata not in self.seen:
            self.seen[storage._cdata] = tensor
            size = tensor.numel() * BYTES
            if self.inside:
                self.blocks[-1] += size
            else:
                self.outside += size
        return tensor

    @contextmanager
    def block(self, *inputs: Any) -> Iterator[None]:
        self.inputs += sum(x.numel() * BYTES for x in inputs if isinstance(x, Tensor))
        self.blocks.append(0)
        self.inside = True
        try:
            yield
        finally:
            self.inside = False


@lru_cache(maxsize=8)
def sizes(profile: Profile, crop: int, official: bool) -> Sizes:
    """Counts parameters and kept activations on meta tensors."""
    with torch.device("meta"):
        model = AEIC(profile)
    if official:
        for part in (model.unet, model.vae):
            for name, parameter in part.named_parameters():
                parameter.requires_grad_(part is model.unet and name.startswith(TRAINED_ENDS))
        lora.attach(model.unet)
    kept = _Kept({parameter.untyped_storage()._cdata for parameter in model.parameters()})
    for block in recomputed_blocks(model):
        _watch(block, kept)
    x = torch.empty(1, 3, crop, crop, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        # The likelihoods are left out: their arrays are small, and CompressAI keeps some of their tensors on the CPU.
        codec = model.codec
        y = codec.g_a(x)
        base = codec.h_s(codec.hyper(y))
        for index in range(PASS_COUNT):
            codec.context(index, base)
        features, residual = codec.g_s(base)
        model.vae(model.unet(features) + residual)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    still = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    whole = kept.outside + sum(kept.blocks)
    recomputed = kept.outside + kept.inputs + max(kept.blocks, default=0)
    return Sizes(trained / 1e6, still / 1e6, whole / 1e9, recomputed / 1e9)


@lru_cache(maxsize=8)
def _counted(profile: Profile, crop: int) -> dict[str, Any]:
    return count(profile, crop, crop)


def _watch(block: nn.Module, kept: _Kept) -> None:
    forward = block.forward

    def watched(*inputs: Any, **options: Any) -> Any:
        with kept.block(*inputs):
            return forward(*inputs, **options)

    block.forward = watched


def flops_a_crop(recipe: Recipe, stage: Stage, profile: Profile) -> float:
    """FLOPs of one crop: forward, backward, what is computed again, the teacher and the losses."""
    counted = _counted(profile, stage.crop)
    macs: dict[str, float] = counted["macs_by_part"]  # thousands a pixel
    codec = sum(macs[part] for part in ("g_a", "h_a", "h_s", "context", "g_s"))
    generator = sum(macs[part] for part in ("unet", "vae")) + sum(counted["attention_macs"].values())
    branches = macs.get("lora", 0.0)
    forward = codec + generator + branches
    weights = codec + branches if recipe.official else forward
    total = forward + forward + weights  # the backward pass: of activations everywhere, of weights that learn
    if recipe.checkpointing:
        total += macs["g_s"] + generator + branches
    if stage.distill and recipe.teacher:
        taught = _counted(profiles.profile(recipe.teacher), stage.crop)["macs_by_part"]
        total += sum(taught[part] for part in ("g_a", "h_a", "h_s", "context", "g_s", "unet"))
    pixels = stage.crop**2
    network = 1e3 * total * pixels
    losses = 3 * FEATURES_MACS * pixels
    losses += 3 * VGG_MACS * pixels * sum(name in stage.weights for name in ("lpips", "dists"))
    losses += 3 * CLIP_MACS * ("clip" in stage.weights)
    return 2 * (network + losses)


def memory(recipe: Recipe, stage: Stage, profile: Profile) -> dict[str, float]:
    """Gigabytes on one card by use, for batches of ``stage.batch``."""
    found = sizes(profile, stage.crop, recipe.official)
    kept = found.kept_recomputed if recipe.checkpointing else found.kept
    uses = {
        "weights that learn, gradients, optimiser, average (float32)": found.trained * 20 / 1e3,
        "frozen weights (bfloat16)": found.still * 2 / 1e3,
        "activations for the backward pass": kept * stage.batch,
    }
    if stage.distill and recipe.teacher:
        teacher = sizes(profiles.profile(recipe.teacher), stage.crop, recipe.official)
        uses["teacher (float32)"] = teacher.trained * 4 / 1e3
    return uses


def plan(recipe: Recipe) -> dict[str, Any]:
    """The plan of every stage, and hours of the whole recipe by card."""
    profile = profiles.profile(recipe.profile)
    stages, total = [], 0.0
    for stage in recipe.stages:
        crops = stage.steps * (stage.crops_a_step or stage.batch)
        flops = flops_a_crop(recipe, stage, profile) * crops
        total += flops
        uses = memory(recipe, stage, profile)
        stages.append({"stage": stage.name, "crops": crops, "flops": flops, "gigabytes": uses})
    hours = {card: total / (tflops * 1e12 * UTILISATION) / 3600 for card, (tflops, _) in CARDS.items()}
    return {"profile": recipe.profile, "stages": stages, "flops": total, "hours_on_one": hours}


def text(found: dict[str, Any]) -> str:
    """The plan as Markdown."""
    lines = [f"## {found['profile']}\n", "| stage | crops | FLOPs a crop | FLOPs | GB on a card |", "|---" * 5 + "|"]
    for stage in found["stages"]:
        needed = sum(stage["gigabytes"].values())
        each = stage["flops"] / stage["crops"]
        lines.append(f"| {stage['stage']} | {stage['crops']:,} | {each:.2g} | {stage['flops']:.2g} | {needed:.1f} |")
    lines += ["", "| GB on a card | " + " | ".join(stage["stage"] for stage in found["stages"]) + " |"]
    lines.append("|---" * (1 + len(found["stages"])) + "|")
    for use in dict.fromkeys(use for stage in found["stages"] for use in stage["gigabytes"]):
        cells = [f"{stage['gigabytes'].get(use, 0.0):.1f}" for stage in found["stages"]]
        lines.append(f"| {use} | " + " | ".join(cells) + " |")
    most = max(sum(stage["gigabytes"].values()) for stage in found["stages"])
    lines += ["", "| card | TFLOPS | fits | hours on one | hours on eight |", "|---" * 5 + "|"]
    for card, hours in found["hours_on_one"].items():
        speed, size = CARDS[card]
        fits = "yes" if most < 0.9 * size else "no"
        lines.append(f"| {card}, {size} GB | {speed} | {fits} | {hours:.0f} | {hours / 8:.0f} |")
    return "\n".join(lines) + "\n"


def show(recipes: list[Recipe]) -> None:
    """Print the plans, and as the last line their JSON."""
    found = [plan(recipe) for recipe in recipes]
    for each in found:
        print(text(each))
    print(f"Speed assumed: {UTILISATION:.0%} of dense bfloat16. Nothing was measured.")
    print(json.dumps({"plan": found}))
