"""A bundle of a published profile with golden weights: each tensor is computed from its name, as for the golden
vectors.

Its pictures are meaningless, but decoding them takes as much work as with real weights. Without ``decoder`` it encodes
and entropy-decodes only.
"""

from __future__ import annotations

from pathlib import Path

import torch

from aeic.bundle import Bundle
from aeic.profiles import Profile, profile
from aeic_nets.codec import Codec
from aeic_nets.integer.export import export_entropy, write_gpu_entropy
from aeic_nets.official import keys
from aeic_nets.official.golden_weights import GoldenTensors, golden_picture
from aeic_nets.official.weights import load_codec
from aeic_train.export.bundle import write_manifest, write_weights
from aeic_train.export.from_official import build
from aeic_train.export.onnx_graphs import write_encoder_graphs, write_float_entropy
from aeic_train.export.tables import hyper_medians, write_tables


def golden_codec(name: str) -> Codec:
    """The codec of profile ``name`` with golden weights, without g_s."""
    with torch.device("meta"):
        codec = Codec(profile(name))
    del codec.g_s
    load_codec(codec, GoldenTensors("codec", keys.codec_keys(profile(name))))
    return codec.eval().requires_grad_(False)


def golden_files(sizes: Profile) -> dict[str, GoldenTensors]:
    """The tensors of the four official files, each computed when it is read."""
    return {
        "codec": GoldenTensors("codec", keys.codec_keys(sizes)),
        "unet_ckpt": GoldenTensors("unet_ckpt", keys.trained_unet_keys(sizes)),
        "sd_unet": GoldenTensors("sd_unet", keys.sd_turbo_keys(sizes)),
        "half": GoldenTensors("half", keys.half_decoder_keys(sizes), "decoder."),
    }


@torch.no_grad()
def write_golden_bundle(codec: Codec, folder: Path, exact: bool = True, decoder: bool = False) -> Bundle:
    """Write the bundle of ``codec`` to ``folder``, which is created. ``exact=False`` gives it the float32 entropy
    graphs.

    ``decoder`` adds the weights of the whole network, merged and folded: 1.8 GB on disk, and 5 GB of memory to write
    them.
    """
    folder.mkdir(parents=True)
    write_tables(codec, folder / "tables.npz")
    write_encoder_graphs(codec, folder)
    if exact:
        latents = [codec.g_a(golden_picture(256, 384, phase)) for phase in (0.0, 3.0)]
        integers = export_entropy(codec, latents, folder, hyper_medians(codec))
        integers.save(folder / "integer.npz")
        write_gpu_entropy(integers, folder)
    else:
        write_float_entropy(codec, folder)
    if decoder:
        write_weights(build(golden_files(codec.profile), codec.profile, folded=True), folder / "weights.safetensors")
    card: dict[str, object] = {"source": "weights made from their names"}
    write_manifest(folder, codec.profile, f"golden-{codec.profile.name}", [{"name": "r0", "bpp": 4.0}], 0, card)
    return Bundle.load(folder)
