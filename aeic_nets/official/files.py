"""The four official files: where they are, and their tensors under canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from aeic.errors import BundleError
from aeic_nets.official import keys
from aeic_nets.official.pickles import entry, read_file

SD_TURBO_FILES = (
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
PUBLISHED_SHA256 = {
    "unet/diffusion_pytorch_model.safetensors": "438da6db739c8651ec4152341b8133d6896db452ea27afdb6b9b0344f0c40532"
}
"""The digests that the publishers of these files show. For the other files, none was found."""


def read_official(sd_turbo: Path, half: Path, checkpoint: Path, scratch: Path) -> dict[str, Mapping[str, Tensor]]:
    """The four name spaces ("codec", "unet_ckpt", "sd_unet", "half") under canonical names."""
    return read_base(sd_turbo, half, scratch) | read_checkpoint(checkpoint, scratch)


def read_base(sd_turbo: Path, half: Path, scratch: Path) -> dict[str, Mapping[str, Tensor]]:
    """ "sd_unet" and "half": what AEIC starts from. ``sd_turbo`` is the file of the UNet."""
    half_file = read_file(half, scratch)
    decoder = entry(half_file, "state_dict") or half_file
    return {
        "sd_unet": keys.rename(read_file(sd_turbo, scratch), keys.official_unet_name),
        "half": keys.rename(keys.Renamed(decoder, {k: k for k in decoder if "decoder." in k}), keys.half_decoder_name),
    }


def read_checkpoint(checkpoint: Path, scratch: Path) -> dict[str, Mapping[str, Tensor]]:
    """ "codec" and "unet_ckpt": what is trained."""
    trained = read_file(checkpoint, scratch)
    return {
        "codec": keys.rename(entry(trained, "state_dict_codec"), keys.official_codec_name),
        "unet_ckpt": keys.rename(entry(trained, "state_dict_unet"), keys.official_unet_name),
    }


def find_sd_turbo(folder: Path) -> Path:
    """The file with the UNet's weights in SD-Turbo's folder."""
    for name in SD_TURBO_FILES:
        if (folder / name).is_file():
            return folder / name
    raise BundleError(f"no UNet weights under {folder}: give the folder that holds {SD_TURBO_FILES[0]}")
