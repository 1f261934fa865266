"""Official tensors into our modules: names mapped, LoRA merged, the half decoder's conv_in widened.

Each loader takes a mapping from official names (:mod:`aeic_nets.official.keys`) to tensors, which may make each tensor
when asked, and gives the module new parameters: a module built on the meta device takes no memory before that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from compressai.entropy_models import EntropyBottleneck
from torch import Tensor, nn

from aeic.errors import BundleError
from aeic_nets.codec import Codec
from aeic_nets.official.keys import LORA_SCALING, TRAINED_ENDS, lora_modules, official_codec_name
from aeic_nets.unet import UNet, widen_conv_in
from aeic_nets.vae import PictureDecoder


def load_codec(codec: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
    """``state_dict_codec`` into a :class:`Codec`, or into its part called ``prefix`` (as ``g_s.``)."""
    _assign(codec, lambda name: tensors[official_codec_name(prefix + name)])
    if isinstance(codec, Codec):
        _rebuild_buffers(codec)


def load_unet(unet: UNet, base: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    """SD-Turbo's tensors and ``state_dict_unet`` (``default`` form) into a UNet, merged."""
    adapted = {f"{name}.weight": name for name, _ in lora_modules(unet)}

    def tensor(name: str) -> Tensor:
        if name.startswith(TRAINED_ENDS):
            return trained[name]
        if (module := adapted.get(name)) is None:
            return base[name]
        return merge_lora(
            base[name], trained[f"{module}.lora_A.default.weight"], trained[f"{module}.lora_B.default.weight"]
        )

    _assign(unet, tensor)


def load_unet_base(unet: UNet, base: Mapping[str, Tensor]) -> None:
    """SD-Turbo's tensors alone into a UNet. Both ends keep what they have."""
    _assign(unet, lambda name: base[name], skipped=TRAINED_ENDS)


def load_vae(vae: PictureDecoder, half: Mapping[str, Tensor]) -> None:
    """The half decoder (names without ``decoder.``) into a picture decoder, its conv_in widened to what that takes."""
    channels = vae.decoder.conv_in.in_channels

    def tensor(name: str) -> Tensor:
        found = half[name]
        if name == "conv_in.weight" and found.shape[1] != channels:
            return widen_conv_in(found, channels, channels / found.shape[1])
        return found

    _assign(vae.decoder, tensor)


def merge_lora(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W + 0.25 B A in float32, for a linear layer (out, in) or a convolution (out, in, k, k) with 1x1 B."""
    delta = b.float().flatten(1) @ a.float().flatten(1)
    return torch.add(weight.float(), delta.view(weight.shape), alpha=LORA_SCALING)


def _assign(module: nn.Module, tensor: Callable[[str], Tensor], skipped: tuple[str, ...] = ()) -> None:
    for name, old in list(module.named_parameters()):
        if name.startswith(skipped) and skipped:
            continue
        try:
            new = tensor(name)
        except KeyError:
            raise BundleError(f"the checkpoint lacks {name}: give the original files") from None
        if new.shape != old.shape:
            raise BundleError(f"{name} is {tuple(new.shape)}, but {tuple(old.shape)} is wanted: another profile?")
        path, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(path), leaf, nn.Parameter(new.float(), requires_grad=False))


def _rebuild_buffers(codec: Codec) -> None:
    """CompressAI's constants, which a module built on the meta device lacks."""
    if codec.entropy_bottleneck.target.is_meta:
        for name, buffer in EntropyBottleneck(codec.profile.hyper_channels).named_buffers():
            path, _, leaf = name.rpartition(".")
            setattr(codec.entropy_bottleneck.get_submodule(path), leaf, buffer)
