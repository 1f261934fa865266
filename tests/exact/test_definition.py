"""The integer definition itself: tables, limbs, proof, storage, and its torch twin."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aeic.passes import PASS_COUNT, pass_mask
from aeic.profiles import PROFILES
from aeic.tables import gaussian_scales
from aeic_nets.codec import Codec
from aeic_nets.integer import calibrate as calibration
from aeic_nets.integer import network
from aeic_nets.integer.calibrate import calibrate, quantise, sizes_of
from aeic_nets.integer.fake_quant import Codes, FakeQuantOps, Watcher, code_limbs, weight_limbs
from aeic_nets.integer.gelu_table import MARGIN, gelu_shift, gelu_table
from aeic_nets.integer.model import ExactnessError, IntegerModel, Layer, Site
from aeic_nets.integer.proof import EXACT, prove
from aeic_nets.integer.reference import Reference
from aeic_nets.integer.scale_index import CELLS, cells, index_table
from aeic_nets.integer.training import (
    QuantisedCodec,
    disable_quantisation,
    enable_quantisation,
    frame_bits,
    price,
    set_sites,
)
from aeic_train.export.tables import hyper_medians
from tests.support.models.exact_models import SMALL, latents, small_codec, small_model


def test_the_network_is_the_float_codec() -> None:
    """Written once more over abstract operations, it must still be the same network."""
    codec = small_codec()
    ops, sizes = FakeQuantOps(codec.get_submodule, None), sizes_of(codec)
    base = latents()[0]
    with torch.no_grad():
        z = torch.randn(1, SMALL.hyper_channels, 2, 3)
        torch.testing.assert_close(network.hyper_synthesis(ops, z, sizes), codec.h_s(z), atol=1e-4, rtol=1e-4)
        for index in range(PASS_COUNT):
            for got, want in zip(network.context(ops, index, base, sizes), codec.context(index, base)):
                torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)


def test_training_sees_the_numbers_of_the_reference() -> None:
    codec = copy.deepcopy(small_codec())
    set_sites(codec, small_model().sites)
    reference = Reference(quantise(codec, small_model().sites))
    z = np.random.default_rng(0).integers(-9, 10, (1, SMALL.hyper_channels, 2, 3)).astype(np.int32)
    base = reference.hyper_synthesis(z)
    with torch.no_grad():
        np.testing.assert_array_equal(codec.h_s(torch.from_numpy(z)).numpy(), base)
        for index in range(PASS_COUNT):
            means, scales = codec.context(index, torch.from_numpy(base))
            want_means, want_indexes = reference.context(index, base)
            mask = pass_mask(index, *base.shape[1:])
            np.testing.assert_array_equal(means.numpy()[0][mask], want_means[0][mask])
            np.testing.assert_array_equal(index_table()[cells(scales.numpy())][0][mask], want_indexes[0][mask])
            assert not want_means[0][~mask].any() and (want_indexes[0][~mask] == -1).all()


def with_medians() -> Codec:
    """The small codec with medians of z that are neither 0 nor on the grid of the latents."""
    codec = copy.deepcopy(small_codec())
    with torch.no_grad():
        codec.entropy_bottleneck.quantiles[:, 0, 1] = 0.3
    return codec


def test_calibration_sees_z_on_the_grid_of_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher()
    monkeypatch.setattr(calibration, "Watcher", lambda: watcher)
    calibrate(with_medians(), latents())
    values = torch.cat(watcher.samples["h_s.increase.0.in"])
    assert values.abs().max() > 1
    torch.testing.assert_close(values - 0.3, (values - 0.3).round())


def test_training_and_the_price_have_the_latents_of_the_reference() -> None:
    """With medians of z, which the integer model rounds to the grid of the latents."""
    codec = with_medians()
    y = latents()[0]
    set_sites(codec, calibrate(codec, [y]))
    assert isinstance(codec, QuantisedCodec)
    model = quantise(codec, codec.integer_ops.sites, hyper_medians(codec))
    with torch.no_grad():
        z_symbols = (codec.hyper(y) - model.medians[0]).round().int().numpy()
        codec.zero_skipped = True
        codec.log_gain.zero_(), codec.log_inverse_gain.zero_()
        trained = codec(y)
    assert z_symbols.any() and (model.medians == np.float32(77 / 256)).all()
    _, _, y_hat = Reference(model).entropy(y.numpy(), z_symbols, np.full(64, 9999))
    np.testing.assert_array_equal(trained["y_hat"].numpy(), y_hat)
    np.testing.assert_array_equal(frame_bits(codec, y, 0)[1].numpy(), y_hat)


def test_quantised_training_moves_every_weight_of_the_entropy_model() -> None:
    codec = copy.deepcopy(small_codec()).train()
    enable_quantisation(codec, latents())
    twin = copy.deepcopy(codec)
    out = codec(latents()[0])
    (out["y_bits"] + out["z_bits"] + out["y_hat"].square().mean()).backward()
    for name, parameter in codec.named_parameters():
        if name.startswith(("h_s", "g_c", "adapter")):
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert type(twin) is type(codec) and twin.g_c is not codec.g_c
    disable_quantisation(codec)
    assert type(codec) is Codec


def test_the_price_is_printed_and_small_for_a_smooth_net() -> None:
    codec = copy.deepcopy(small_codec())
    pairs = [(y, rate) for rate, y in enumerate(latents())]
    found = price(codec, pairs, calibrate(codec, [y * codec.gains(rate)[0] for y, rate in pairs]))
    assert found["float_bits"] > 0 and abs(found["price_percent"]) < 5
    assert type(codec) is Codec, "the codec is left as it was"


def test_a_model_survives_storage(tmp_path: Path) -> None:
    model = small_model(0, (("adapter_out.*", 14),))
    model.save(tmp_path / "model.npz")
    loaded = IntegerModel.load(tmp_path / "model.npz")
    assert loaded.sites == model.sites and loaded.sizes == model.sizes
    base = latents()[0].numpy()
    found, wanted = Reference(loaded).context(1, base), Reference(model).context(1, base)
    assert len(found) == len(wanted) == 2
    assert all(np.array_equal(got, want) for got, want in zip(found, wanted))


def test_limbs_add_up() -> None:
    whole = torch.arange(-8127.0, 8128)
    high, low = weight_limbs(whole, 14)
    assert torch.equal(high + low, whole)
    assert float(low.min()) >= -64 and float(low.max()) <= 63 and float((high / 128).abs().max()) <= 64
    site = Site(0, 16)
    codes = torch.arange(float(site.lowest), site.highest + 1)[None, None, None]
    high, low = code_limbs(Codes(codes, torch.zeros(1, dtype=torch.int64), 16))
    assert torch.equal(high + low, codes)
    assert float((high / 256).min()) >= -128 and float((high / 256).max()) <= 127
    assert float(low.min()) >= -128 and float(low.max()) <= 127


@pytest.mark.parametrize("step", [-7, -5, -3, 0])
@pytest.mark.parametrize("out", [-8, -6, -4, -1])
def test_float_gelu_cannot_miss_the_table(step: int, out: int) -> None:
    """Float32 GELU of torch, and any value within a hundredth of the margin, rounds to the table's entry."""
    codes = torch.arange(-128.0, 128) * 2.0**step
    shift = gelu_shift(step, out)
    table = gelu_table(step, out, shift)
    values = torch.nn.functional.gelu(codes).double().numpy() / 2.0**out + shift
    for nudge in (-0.9 * MARGIN, 0.0, 0.9 * MARGIN):
        np.testing.assert_array_equal(np.clip(np.rint(values + nudge), -128, 127), table)


def test_indexes_follow_the_floor_rule() -> None:
    table, scales = index_table(), gaussian_scales()
    assert table.shape == (CELLS,) and (np.diff(table.astype(int)) >= 0).all()
    assert table[cells(np.array([-1, 0, 0.078], np.float32))].tolist() == [-1, -1, -1]
    assert table[cells(np.array([0.0821, 0.11, 300, 256], np.float32))].tolist() == [0, 0, 63, 63]
    for number, scale in enumerate(scales[1:-1], start=1):
        just = np.array([scale * 0.9999, scale * 1.02], np.float32)
        assert table[cells(just)].tolist() == [number - 1, number]


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_can_be_proven(name: str) -> None:
    """Whatever is trained: at these widths no 7-bit weights can break the bound."""
    sizes = PROFILES[name]
    widest = max(2 * sizes.context_width, 9 * sizes.hyper_channels, sizes.latent_channels + sizes.context_width)
    assert 128 * 63 * widest < EXACT


def test_what_could_be_rounded_is_refused() -> None:
    model = small_model()
    assert max(prove(model).values()) < EXACT
    name = "g_c.block.0.blocks.1.fc2"
    layer = model.layers[name]

    def with_layer(changed: Layer) -> IntegerModel:
        return replace(model, layers=model.layers | {name: changed})

    with pytest.raises(ExactnessError, match=r"fc2.*2\*\*24"):
        prove(with_layer(replace(layer, bias=np.full_like(layer.bias, 2**24))))
    wide = np.full((len(layer.bias), 2100, 1, 1), 63, np.int8)
    with pytest.raises(ExactnessError, match="fc2"):
        prove(with_layer(replace(layer, limbs=(wide,))))
    with pytest.raises(ExactnessError, match="saturates"):
        prove(with_layer(replace(layer, limbs=(np.full_like(layer.limbs[0], 65),))))
    with pytest.raises(ExactnessError, match="norm"):
        sites = model.sites | {"adapter_in.0.out": replace(model.sites["adapter_in.0.out"], bits=20)}
        prove(replace(model, sites=sites))


def test_a_bias_beside_limbs_may_be_large() -> None:
    """It is a term of its own, in coarser steps, so that weights of 14 bits and codes of 16 do not forbid it."""
    codec = copy.deepcopy(small_codec())
    with torch.no_grad():
        codec.adapter_in[0].branch1[0].bias += 50
    model = quantise(codec, calibrate(codec, latents()), weight_bits=(("adapter_in.*", 14),))
    layer = model.layers["adapter_in.0.branch1.0"]
    assert len(layer.limbs) == 2 and layer.bias_shift == 11
    np.testing.assert_allclose(layer.bias_value, codec.adapter_in[0].branch1[0].bias.detach(), rtol=1e-4)
    prove(model)
    wide = replace(layer, bias=np.full_like(layer.bias, 2**24))
    with pytest.raises(ExactnessError, match=r"branch1\.0"):
        prove(replace(model, layers=model.layers | {"adapter_in.0.branch1.0": wide}))
