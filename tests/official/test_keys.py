"""Our classes give the official key lists, name by name and shape by shape; official_keys.json.gz holds those."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from aeic import profiles
from aeic.errors import BundleError
from aeic_nets.official import keys

PUBLISHED = json.loads(gzip.decompress((Path(__file__).parent / "official_keys.json.gz").read_bytes()))


@pytest.mark.parametrize("name", ["se", "me"])
@pytest.mark.parametrize("part", ["codec_keys", "trained_unet_keys", "sd_turbo_keys", "half_decoder_keys"])
def test_key_lists_are_the_published_ones(name: str, part: str) -> None:
    found = getattr(keys, part)(profiles.profile(name))
    wanted = {key: tuple(shape) for key, shape in PUBLISHED[name][part].items()}
    assert {key: found.get(key) for key in wanted} == wanted
    assert set(found) == set(wanted)


def test_lora_modules_are_the_published_ones() -> None:
    unet = keys._unet(profiles.SE)
    assert {name for name, _ in keys.lora_modules(unet)} == set(PUBLISHED["se"]["lora_modules"])


def test_every_alternative_name_is_read() -> None:
    for official, other in PUBLISHED["se"]["alternative_names"].items():
        assert keys.official_unet_name(other) == official
    assert keys.official_unet_name("module.base_model.model.mid_block.a.base_layer.weight") == "mid_block.a.weight"
    assert keys.official_codec_name("module.entropy_bottleneck.matrices.3") == "entropy_bottleneck._matrix3"
    assert keys.half_decoder_name("first_stage_model.decoder.conv_in.weight") == "conv_in.weight"


def test_one_tensor_under_two_names_is_refused() -> None:
    tensors = {"conv_in.bias": torch.zeros(1), "student_conv_in.bias": torch.zeros(1)}
    with pytest.raises(BundleError, match="twice"):
        keys.rename(tensors, keys.official_unet_name)


def test_differences_are_listed() -> None:
    wanted = {"a": (1,), "b": (2,)}
    assert keys.differences({"b": torch.zeros(3), "c": torch.zeros(1)}, wanted) == (
        ["a"],
        ["c"],
        ["b (3,), wanted (2,)"],
    )
