"""The official network at a reduced width: every kind of layer and name, half a million parameters."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from aeic.profiles import SE, UNetSizes, VAESizes
from aeic_nets.network import AEIC
from aeic_nets.official import keys
from aeic_nets.official.golden_weights import GoldenTensors
from aeic_nets.official.weights import load_codec, load_unet, load_vae

SMALL = replace(
    SE,
    analysis_widths=(8, 8, 16, 16, 16),
    latent_channels=16,
    context_width=16,
    context_depth=1,
    synthesis_widths=(16, 16, 16),
    unet_channels=16,
    residual_channels=16,
    unet=UNetSizes((16, 16, 32, 32), (True, True, True, False), layers=1, head_width=8, norm_groups=4),
    vae=VAESizes((16, 16, 16, 8), layers=2, mid_attention=True, norm_groups=4, patch=1),
)


def official_files() -> dict[str, dict[str, Tensor]]:
    """The tensors of the four official sources by name space, under official names."""
    return {
        "codec": dict(GoldenTensors("codec", _parameters(keys.codec_keys(SMALL)))),
        "unet_ckpt": dict(GoldenTensors("unet_ckpt", keys.trained_unet_keys(SMALL))),
        "sd_unet": dict(GoldenTensors("sd_unet", keys.sd_turbo_keys(SMALL))),
        "half": dict(GoldenTensors("half", keys.half_decoder_keys(SMALL), "decoder.")),
    }


def small_model() -> AEIC:
    files = official_files()
    with torch.device("meta"):
        model = AEIC(SMALL)
    load_codec(model.codec, files["codec"])
    load_unet(model.unet, files["sd_unet"], files["unet_ckpt"])
    load_vae(model.vae, files["half"])
    return model.eval()


def _parameters(shapes: dict[str, keys.Shape]) -> dict[str, keys.Shape]:
    return {name: shape for name, shape in shapes.items() if 0 not in shape and not name.endswith(("target", "bound"))}
