"""The tensors of the official files: names and shapes, derived from our own classes, and every form of the names.

An AEIC checkpoint holds ``state_dict_codec`` and ``state_dict_unet``; SD-Turbo's UNet and the half VAE decoder come
from files of their own. Source: docs/model.md sections 8.1 to 8.3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from aeic.errors import BundleError
from aeic.profiles import Profile
from aeic_nets.codec import Codec
from aeic_nets.unet import UNet
from aeic_nets.vae import VAE_INPUTS, PictureDecoder

Shape = tuple[int, ...]
LORA_RANK = 32
LORA_SCALING = 0.25
"""Alpha 8 over rank 32."""
TRAINED_ENDS = ("conv_in", "conv_out")
"""The two convolutions of the UNet that the AEIC checkpoint replaces."""
_LORA_LEAVES = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
_LORA_CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut")
_SAMPLER = re.compile(r"(down|up)samplers\.\d+\.conv$")
_BOTTLENECK = re.compile(r"^(entropy_bottleneck\.)(matrices|biases|factors)\.(\d)$")
_SINGULAR = {"matrices": "_matrix", "biases": "_bias", "factors": "_factor"}
# CompressAI's buffers: rebuilt from the weights, empty in a training checkpoint, so of no use to us.
_CODEC_BUFFERS = {
    "entropy_bottleneck._offset": (0,),
    "entropy_bottleneck._quantized_cdf": (0,),
    "entropy_bottleneck._cdf_length": (0,),
    "entropy_bottleneck.target": (3,),
    "entropy_bottleneck.likelihood_lower_bound.bound": (1,),
    "gaussian_conditional._offset": (0,),
    "gaussian_conditional._quantized_cdf": (0,),
    "gaussian_conditional._cdf_length": (0,),
    "gaussian_conditional.scale_table": (0,),
    "gaussian_conditional.scale_bound": (1,),
    "gaussian_conditional.likelihood_lower_bound.bound": (1,),
    "gaussian_conditional.lower_bound_scale.bound": (1,),
}


def codec_keys(profile: Profile) -> dict[str, Shape]:
    """``state_dict_codec``: the parameters of :class:`Codec` under their official names, and CompressAI's buffers."""
    with torch.device("meta"):
        codec = Codec(replace(profile, rates=1))
    found = {official_codec_name(name): tuple(p.shape) for name, p in codec.named_parameters()}
    return found | _CODEC_BUFFERS


def trained_unet_keys(profile: Profile) -> dict[str, Shape]:
    """``state_dict_unet``: both ends of the UNet and two LoRA factors for each adapted module, ``default`` form."""
    unet = _unet(profile)
    found = {f"{end}.{name}": tuple(p.shape) for end in TRAINED_ENDS for name, p in _end(unet, end).named_parameters()}
    for name, module in lora_modules(unet):
        out, inputs, *kernel = module.weight.shape
        found[f"{name}.lora_A.default.weight"] = (LORA_RANK, inputs, *kernel)
        found[f"{name}.lora_B.default.weight"] = (out, LORA_RANK, *(1 for _ in kernel))
    return found


def sd_turbo_keys(profile: Profile) -> dict[str, Shape]:
    """The tensors taken from SD-Turbo's UNet: all of ours but the two trained ends."""
    return {name: tuple(p.shape) for name, p in _unet(profile).named_parameters() if not name.startswith(TRAINED_ENDS)}


def half_decoder_keys(profile: Profile) -> dict[str, Shape]:
    """The half VAE decoder's tensors, without ``decoder.``; conv_in as in the file, before it is widened."""
    with torch.device("meta"):
        decoder = PictureDecoder(profile.vae, VAE_INPUTS).decoder
    return {name: tuple(p.shape) for name, p in decoder.named_parameters()}


def lora_modules(unet: UNet) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    """The modules that carry a LoRA: attention and feed-forward projections, residual and sampler convolutions."""
    return [
        (name, module)
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and (
            name.endswith(tuple(f".{leaf}" for leaf in _LORA_LEAVES))
            or name.rsplit(".", 1)[-1] in _LORA_CONVOLUTIONS
            or _SAMPLER.search(name)
        )
    ]


def official_codec_name(name: str) -> str:
    """A name of our codec, or of a newer CompressAI, as the official checkpoint spells it."""
    return _BOTTLENECK.sub(lambda m: f"{m[1]}{_SINGULAR[m[2]]}{m[3]}", name.removeprefix("module."))


def official_unet_name(name: str) -> str:
    """One of the forms of a UNet name, in the ``default`` form.

    Known forms: ``student_unet_lora`` or nothing for ``default``, ``student_conv_in`` and ``student_conv_out``,
    PEFT's ``base_layer`` and ``base_model.model``, and wrappers' ``module`` and ``unet``.
    """
    name = re.sub(r"^((module|unet|base_model\.model)\.)+", "", name)
    name = re.sub(r"^student_(conv_in|conv_out)\.", r"\1.", name)
    name = re.sub(r"\.lora_([AB])\.(?:(?:student_unet_lora|default)\.)?weight$", r".lora_\1.default.weight", name)
    return name.replace(".base_layer.", ".")


def half_decoder_name(name: str) -> str:
    """A name of the half decoder's file, without ``decoder.`` and what stands before it."""
    return name.rsplit("decoder.", 1)[-1]


class Renamed(Mapping[str, Tensor]):
    """Tensors of another mapping under new names, each fetched when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        """``names`` gives, for each new name, the one in ``tensors``."""
        self._tensors, self._names = tensors, dict(names)

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[self._names[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def rename(tensors: Mapping[str, Tensor], form: Callable[[str], str]) -> Renamed:
    """``tensors`` under canonical names; ``BundleError`` if two names are forms of the same one."""
    names: dict[str, str] = {}
    for name in tensors:
        if form(name) in names:
            raise BundleError(f"{form(name)} stands twice in the checkpoint, once as {name}: give the original file")
        names[form(name)] = name
    return Renamed(tensors, names)


def differences(
    found: Mapping[str, Tensor], wanted: Mapping[str, Shape], optional: Iterable[str] = ()
) -> tuple[list[str], list[str], list[str]]:
    """Names that are missing, extra, and of another shape (with both shapes); buffers of any shape are accepted."""
    buffers = set(_CODEC_BUFFERS) | set(optional)
    names = set(found)
    missing = sorted(name for name in wanted if name not in names and name not in buffers)
    extra = sorted(name for name in names if name not in wanted)
    shapes = {name: tuple(found[name].shape) for name in wanted if name in names and name not in buffers}
    misshapen = [f"{name} {shape}, wanted {wanted[name]}" for name, shape in shapes.items() if shape != wanted[name]]
    return missing, extra, misshapen


@lru_cache(maxsize=4)
def _unet(profile: Profile) -> UNet:
    with torch.device("meta"):
        return UNet(profile.unet, profile.unet_channels, profile.residual_channels)


def _end(unet: UNet, name: str) -> nn.Module:
    return unet.get_submodule(name)
