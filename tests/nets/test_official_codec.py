"""The full-size SE codec, built by the same classes as nano, reproduces the published modules' vectors (flow C)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aeic.profiles import ME, NANO, SE, Profile
from aeic_nets.codec import Codec
from aeic_nets.official.golden_weights import golden_picture, golden_tensor

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "official_se.npz")


@pytest.fixture(scope="module")
def flow() -> dict[str, torch.Tensor]:
    codec = Codec(SE)
    del codec.g_s  # 67 M parameters that this flow does not touch
    with torch.no_grad():
        for name, parameter in codec.named_parameters():
            parameter.copy_(torch.from_numpy(golden_tensor("codec", name, tuple(parameter.shape))))
    codec.zero_skipped = True
    with torch.no_grad():
        return codec(codec.g_a(golden_picture(256, 192, 10.95)))


def test_analysis_matches(flow: dict[str, torch.Tensor]) -> None:
    np.testing.assert_allclose(flow["y"].numpy(), GOLDEN["A_y"], atol=1e-4)


def test_every_symbol_is_equal(flow: dict[str, torch.Tensor]) -> None:
    np.testing.assert_array_equal(flow["z_symbols"].numpy(), GOLDEN["C_z_sym"])
    np.testing.assert_array_equal(flow["symbols"].numpy(), GOLDEN["C_y_sym"])


def test_means_scales_and_latents_match(flow: dict[str, torch.Tensor]) -> None:
    for name, golden in (("means", "C_means"), ("scale", "C_scales"), ("y_hat", "C_y_hat")):
        np.testing.assert_allclose(flow[name].numpy(), GOLDEN[golden], atol=1e-3, err_msg=name)


@pytest.mark.parametrize(("profile", "encoder", "codec"), [(SE, 16.1003, 83.434408), (ME, 55.9123, 123.396752)])
def test_parameters_are_those_published(profile: Profile, encoder: float, codec: float) -> None:
    with torch.device("meta"):
        model = Codec(profile)
    count = sum(p.numel() for p in model.parameters()) - model.entropy_bottleneck.quantiles.numel()
    generator = sum(p.numel() for p in model.g_s.parameters())
    assert count / 1e6 == pytest.approx(codec, abs=1e-3)
    assert (count - generator) / 1e6 == pytest.approx(encoder, abs=1e-3)


def test_nano_is_small() -> None:
    from aeic_nets.network import AEIC

    with torch.device("meta"):
        count = sum(p.numel() for p in AEIC(NANO).parameters())
    assert 5e6 < count < 8e6
