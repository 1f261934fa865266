"""LoRA merged equals LoRA beside; the folded network equals the whole one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from aeic.errors import BundleError
from aeic_nets.folding import channel_averages, fold
from aeic_nets.official.keys import LORA_SCALING
from aeic_nets.official.weights import load_unet, merge_lora
from tests.support.models.official_model import official_files, small_model


def test_merged_linear_lora_equals_the_branch() -> None:
    weight, a, b, x = torch.randn(12, 7), torch.randn(32, 7), torch.randn(12, 32), torch.randn(5, 7)
    expected = F.linear(x, weight) + LORA_SCALING * F.linear(F.linear(x, a), b)
    torch.testing.assert_close(F.linear(x, merge_lora(weight, a, b)), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_merged_convolution_lora_equals_the_branch(stride: int) -> None:
    weight, a, b = torch.randn(6, 5, 3, 3), torch.randn(32, 5, 3, 3), torch.randn(6, 32, 1, 1)
    x = torch.randn(1, 5, 8, 8)
    branch = F.conv2d(F.conv2d(x, a, stride=stride, padding=1), b)
    expected = F.conv2d(x, weight, stride=stride, padding=1) + LORA_SCALING * branch
    found = F.conv2d(x, merge_lora(weight, a, b), stride=stride, padding=1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


def test_the_folded_network_makes_the_same_picture() -> None:
    model = small_model()
    y_hat = torch.randn(1, 16, 2, 4)
    with torch.no_grad():
        latent, residual = model.codec.g_s(y_hat)
        seen = channel_averages(model.unet(latent) + residual)
        whole = model.generate(y_hat)
        before = sum(p.numel() for p in model.parameters())
        fold(model)
        folded_latent, folded_residual = model.codec.g_s(y_hat)
        torch.testing.assert_close(model.unet(folded_latent) + folded_residual, seen, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.generate(y_hat), whole, atol=2e-5, rtol=1e-5)
    assert sum(p.numel() for p in model.parameters()) < before


def test_a_decoder_trained_at_full_width_is_not_folded() -> None:
    model = small_model()
    with torch.no_grad():
        model.vae.decoder.conv_in.weight[0, 5] += 1.0
    with pytest.raises(BundleError, match="full input width"):
        fold(model)


def test_a_missing_tensor_is_named() -> None:
    files, model = official_files(), small_model()
    del files["unet_ckpt"]["mid_block.resnets.0.conv1.lora_A.default.weight"]
    with pytest.raises(BundleError, match=r"lacks mid_block\.resnets\.0\.conv1"):
        load_unet(model.unet, files["sd_unet"], files["unet_ckpt"])
