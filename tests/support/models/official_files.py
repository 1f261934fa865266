"""The official files at any size with golden weights, in the forms that the authors publish them in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from aeic.profiles import Profile
from aeic_nets.official import keys
from aeic_nets.official.golden_weights import GoldenTensors


def write_official(folder: Path, sizes: Profile) -> list[str]:
    """SD-Turbo in half precision, halfDecoder.ckpt and aeic.pkl into ``folder``; the arguments that name them.

    Every tensor by its official name, with some that are not needed, the trained UNet in its student form. At full size
    2.3 GB on disk and 3 GB of memory on the way.
    """
    turbo = folder / "sd-turbo" / "unet"
    turbo.mkdir(parents=True)
    base = {k: v.half() for k, v in GoldenTensors("sd_unet", keys.sd_turbo_keys(sizes)).items()}
    extra = {"time_embedding.linear_1.weight": torch.zeros(2), "conv_out.bias": torch.zeros(4)}
    save_file(base | extra, turbo / "diffusion_pytorch_model.fp16.safetensors")
    del base
    half = _under("decoder.", GoldenTensors("half", keys.half_decoder_keys(sizes), "decoder."))
    torch.save({"state_dict": half | {"encoder.conv_in.bias": torch.zeros(3)}}, folder / "halfDecoder.ckpt")
    shapes = {k: v for k, v in keys.codec_keys(sizes).items() if 0 not in v and not k.endswith(("target", "bound"))}
    codec = dict(GoldenTensors("codec", shapes)) | {"gaussian_conditional._offset": torch.zeros(0, dtype=torch.int32)}
    trained = {
        name.replace(".default.", ".student_unet_lora.").replace("conv_in.", "student_conv_in."): tensor
        for name, tensor in GoldenTensors("unet_ckpt", keys.trained_unet_keys(sizes)).items()
    }
    torch.save({"state_dict_codec": codec, "state_dict_unet": trained}, folder / "aeic.pkl")
    sources = ["--sd-turbo", folder / "sd-turbo", "--half-decoder", folder / "halfDecoder.ckpt"]
    return [str(part) for part in (*sources, "--checkpoint", folder / "aeic.pkl")]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}
