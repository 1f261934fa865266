"""The published training setup: SD-Turbo's UNet with LoRA and the halved picture decoder, from the official files.

The codec, the LoRA and both ends of the UNet are trained; SD-Turbo's own weights and the picture decoder stand still.
A state holds only what is trained, and ``checkpoint.safetensors`` has it under the official names, so that ``aeic
convert`` makes a bundle of it. Source: docs/model.md sections 8.1 to 8.3.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aeic.errors import BundleError
from aeic.profiles import Profile
from aeic_nets.codec import Codec
from aeic_nets.network import AEIC
from aeic_nets.official import lora
from aeic_nets.official.files import find_sd_turbo, read_base, read_checkpoint
from aeic_nets.official.keys import TRAINED_ENDS, codec_keys, differences, official_codec_name, trained_unet_keys
from aeic_nets.official.pickle_child import SEPARATOR
from aeic_nets.official.weights import load_codec, load_unet_base, load_vae
from aeic_nets.runtime.precision import stored


@dataclass(frozen=True)
class Sources:
    """The files that training starts from."""

    sd_turbo: Path
    """SD-Turbo's folder."""
    half_decoder: Path


def build(profile: Profile, sources: Sources) -> AEIC:
    """A network to train, in float32 on the CPU. Frozen parameters have ``requires_grad`` False."""
    with torch.device("meta"):
        model = AEIC(profile)
    model.codec = Codec(profile)
    for end in TRAINED_ENDS:
        old = getattr(model.unet, end)
        new = nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, padding=old.padding)
        setattr(model.unet, end, new)
    with tempfile.TemporaryDirectory(prefix="aeic-train-") as scratch:
        files = read_base(find_sd_turbo(sources.sd_turbo), sources.half_decoder, Path(scratch))
        load_unet_base(model.unet, files["sd_unet"])
        load_vae(model.vae, files["half"])
    lora.attach(model.unet)
    return model


def frozen(model: nn.Module) -> frozenset[str]:
    """The names of the parameters that never learn."""
    return frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)


def share_frozen(model: AEIC, other: AEIC) -> None:
    """Let ``other`` use the frozen parameters of ``model``, so that both are in memory once."""
    for name in frozen(model):
        path, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(path), leaf, model.get_parameter(name))


def store_frozen(model: AEIC, dtype: torch.dtype) -> None:
    """Keep the frozen layers in ``dtype``, in which autocast multiplies them anyway: half the memory."""
    for name in frozen(model):
        parameter = model.get_parameter(name)
        parameter.data = stored(name, model, parameter.data, dtype)


def fingerprint(model: AEIC) -> str:
    """Identifies the frozen parameters: a digest of names, shapes and some values of each."""
    digest = hashlib.sha256()
    for name in sorted(frozen(model)):
        parameter = model.get_parameter(name)
        some = parameter.detach().flatten()[:64].float().cpu().to(torch.bfloat16).float()
        digest.update(f"{name} {tuple(parameter.shape)} ".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


def load_trained(model: AEIC, path: Path) -> None:
    """Load an AEIC checkpoint of the authors, or the ``checkpoint.safetensors`` or ``state.pt`` of a run.

    ``ValueError`` if it does not fit.
    """
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if path.suffix == ".pt":
        tensors = torch.load(path, weights_only=True, map_location="cpu")["average"]
        tensors = {name: tensor for name, tensor in tensors.items() if name in names}
    else:
        with tempfile.TemporaryDirectory(prefix="aeic-train-") as scratch:
            try:
                files = read_checkpoint(path, Path(scratch))
                for space, wanted in (
                    ("codec", codec_keys(model.profile)),
                    ("unet_ckpt", trained_unet_keys(model.profile)),
                ):
                    missing, _, misshapen = differences(files[space], wanted)
                    if faults := [*missing, *misshapen]:
                        raise ValueError(f"{path} does not fit profile {model.profile.name!r}: {faults[0]}")
            except BundleError as error:
                raise ValueError(str(error)) from None
            load_codec(model.codec, files["codec"])
            model.codec.requires_grad_(True)
            tensors = {f"unet.{name}": files["unet_ckpt"][name] for name in trained_unet_keys(model.profile)}
            names = {name for name in names if name.startswith("unet.")}
    if missing_names := sorted(names - set(tensors)):
        raise ValueError(f"{path} does not fit profile {model.profile.name!r}: it lacks {missing_names[0]}")
    try:
        model.load_state_dict(tensors, strict=False)
    except RuntimeError:  # torch's message names every parameter of another shape
        raise ValueError(f"{path} does not fit profile {model.profile.name!r}: tensors of other shapes") from None


def official_names(model: AEIC) -> dict[str, Tensor]:
    """What was trained, under the names of an AEIC checkpoint."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.codec.named_parameters():
        found[f"state_dict_codec{SEPARATOR}{official_codec_name(name)}"] = parameter
    for name, parameter in model.unet.named_parameters():
        if ".lora_" in name or name.startswith(TRAINED_ENDS):
            found[f"state_dict_unet{SEPARATOR}{name}"] = parameter
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in found.items()}


def write_checkpoint(model: AEIC, path: Path) -> None:
    """Write what was trained for ``aeic convert --checkpoint``."""
    partial = path.with_name(path.name + ".partial")
    save_file(official_names(model), partial)
    partial.replace(path)


def recomputed_blocks(model: AEIC) -> list[nn.Module]:
    """The blocks of g_s, the UNet and the picture decoder. Their activations take almost all memory."""
    unet, decoder = model.unet, model.vae.decoder
    blocks: list[nn.Module] = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return [*blocks, decoder.mid_block, *decoder.up_blocks, *model.codec.g_s.synthesis_transform]


def checkpoint_blocks(model: AEIC) -> None:
    """Compute the blocks again in the backward pass, instead of keeping their activations.

    Call it after every copy of ``model`` has been made: the blocks' ``forward`` is replaced.
    """
    for block in recomputed_blocks(model):
        block.forward = _Recomputed(block.forward)


class _Recomputed:
    def __init__(self, forward: object) -> None:
        self._forward = forward

    def __call__(self, *inputs: object, **named: object) -> object:
        return checkpoint(self._forward, *inputs, use_reentrant=False, **named)


def only_trained(state: Mapping[str, Tensor], base: frozenset[str], prefix: str = "") -> dict[str, Tensor]:
    """``state`` without the frozen parameters, whose names are ``base`` behind ``prefix``."""
    return {name: tensor for name, tensor in state.items() if name.removeprefix(prefix) not in base}
