"""The perceptual terms of the published training: LPIPS (VGG), DISTS and CLIP, from libraries that need weights.

Source: the training configuration in the authors' repository. DISTS stands for their variant of it. A recipe that
weighs one of these terms needs pyiqa or transformers, and the weights; nothing is downloaded unless asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from aeic_train.libraries import no_downloads, remedy

Term = Callable[[Tensor, Tensor], Tensor]
"""x_hat and x (N, 3, H, W) in [-1, 1] to a scalar with a gradient."""
TERMS = ("lpips", "dists", "clip")
CLIP_MODEL = "openai/clip-vit-base-patch32"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
CLIP_SIDE = 224


def build(names: Sequence[str], device: torch.device, *, download: bool = False) -> dict[str, Term]:
    """The terms called ``names``. ``ValueError`` names the remedy for one that this machine does not have."""
    return {name: _build(name, device, download) for name in names if name in TERMS}


def _build(name: str, device: torch.device, download: bool) -> Term:
    packages = "transformers" if name == "clip" else "pyiqa"
    try:
        with contextlib.nullcontext() if download else no_downloads():
            if name == "clip":
                return _clip(device, local=not download)
            import pyiqa

            metric = pyiqa.create_metric("lpips-vgg" if name == "lpips" else name, device=device, as_loss=True)
            return lambda x_hat, x: metric((x_hat.clamp(-1, 1) + 1) / 2, (x + 1) / 2).mean()
    except Exception as error:  # of any library below
        raise ValueError(f"the recipe's term {name!r}: {remedy(error, packages)}; or remove it from weights") from error


def _clip(device: torch.device, local: bool) -> Term:
    from transformers import CLIPVisionModelWithProjection

    encoder = CLIPVisionModelWithProjection.from_pretrained(CLIP_MODEL, local_files_only=local).eval()
    encoder.requires_grad_(False).to(device)
    mean, deviation = (torch.tensor(v, device=device)[:, None, None] for v in (CLIP_MEAN, CLIP_DEVIATION))

    def embedded(x: Tensor) -> Tensor:
        small = F.interpolate((x + 1) / 2, (CLIP_SIDE, CLIP_SIDE), mode="bilinear", antialias=True)
        return F.normalize(encoder((small - mean) / deviation).image_embeds, dim=-1)

    def term(x_hat: Tensor, x: Tensor) -> Tensor:
        return (embedded(x_hat) - embedded(x)).norm(dim=-1).mean()

    return term
