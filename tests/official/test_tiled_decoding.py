"""The official tiling as a setting of the decoder: a small network under an official profile's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from aeic import profiles
from aeic.bitstream import Frame
from aeic.errors import BundleError
from aeic.latent_codec import Latents
from aeic.profiles import LATENT_STRIDE
from aeic_nets import tiling
from aeic_nets.runtime import torch_backend
from aeic_nets.runtime.torch_backend import TorchGenerator
from aeic_service.errors import ServiceError
from aeic_train.export.bundle import write_weights
from cloud_decoder import tiling as own_tiling
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from cloud_decoder.inference.devices import build_generator
from tests.support.models.official_model import SMALL, small_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(profiles, "profile", lambda name: SMALL)
    monkeypatch.setitem(torch_backend.UNET_TILES, "se", (16, 8))
    write_weights(small_model(), tmp_path / "weights.safetensors")
    (tmp_path / "bundle.json").write_text(json.dumps({"profile": "se"}))
    return tmp_path


def latents(height: int, width: int) -> NDArray[np.float32]:
    shape = (1, SMALL.latent_channels, height, width)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def test_a_picture_of_one_tile_is_decoded_as_without_tiles(folder: Path) -> None:
    y_hat = latents(4, 4)  # 16x16 samples for the UNet
    plain, tiled = (TorchGenerator(folder, dtype=torch.float32, official_tiling=one)(y_hat) for one in (False, True))
    np.testing.assert_allclose(tiled, plain, atol=1e-5)


def test_a_larger_one_goes_through_the_tiles_of_the_research_code(folder: Path) -> None:
    y_hat = latents(4, 10)
    plain, tiled = (TorchGenerator(folder, dtype=torch.float32, official_tiling=one)(y_hat) for one in (False, True))
    model = small_model()
    with torch.inference_mode():
        latent, residual = model.codec.g_s(torch.from_numpy(y_hat))
        features = tiling.blend_tiles(model.unet, latent, 16, 8) + residual
        expected = tiling.decode_tiled(model.vae.decoder, features).clamp(-1, 1).numpy()
    np.testing.assert_allclose(tiled, expected, atol=2e-2)  # the bundle keeps weights in half precision
    assert np.abs(tiled - expected).max() < 0.5 * np.abs(tiled - plain).max()


def test_the_decoder_gives_it_whole_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    class Generator(TorchGenerator):
        def start(self, y_hat: NDArray[np.float32], *, whole: bool) -> Callable[[], NDArray[Any]]:
            assert whole
            seen.append(y_hat.shape)
            return lambda: np.zeros((len(y_hat), 32 * y_hat.shape[2], 32 * y_hat.shape[3], 3), np.uint8)

    frame = Frame(2560, 1600, 0, "000000", b"x")  # several tiles of our own
    one = Latents(latents(*frame.latent_size)[0], np.zeros(1, np.int16), frame, "")
    generator = Generator(folder, dtype=torch.float32, official_tiling=True)
    decoder = Decoder.__new__(Decoder)
    decoder._whole, decoder._generators, decoder._warm = True, (generator,), [True]
    decoder._generator, decoder.max_batch, decoder.max_batch_pixels = generator, 1, 1
    assert decoder.synthesise([one])[0].shape == (1600, 2560, 3)
    assert seen == [(1, SMALL.latent_channels, *frame.latent_size)]


def test_a_panorama_of_one_row_of_tiles_goes_through_them_too(folder: Path) -> None:
    """The UNet halves its sides three times: a tile as high as the picture has a multiple of 8 samples."""
    pictures = TorchGenerator(folder, dtype=torch.float32, official_tiling=True)(latents(2, 10))
    assert pictures.shape == (1, 3, 64, 320) and np.isfinite(pictures).all()


def test_tiles_of_our_own_fit_a_unet_of_three_halvings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """62 rows of latents are two tiles of 33 rows, which are 132 samples and no multiple of 8."""
    frame = Frame(256, 1984, 0, "000000", b"x")
    monkeypatch.setattr(own_tiling, "WHOLE_PIXELS", 34 * 8 * LATENT_STRIDE**2)
    monkeypatch.setattr(own_tiling, "_tile_shape", own_tiling._tile_shape.__wrapped__)
    one = Latents(latents(*frame.latent_size)[0], np.zeros(1, np.int16), frame, "")
    decoder = Decoder.__new__(Decoder)
    generator = TorchGenerator(folder, dtype=torch.float32)
    decoder._whole, decoder._generators, decoder._warm = False, (generator,), [True]
    decoder._generator, decoder.max_batch, decoder.max_batch_pixels = generator, 1, 1
    assert own_tiling.tile_shape(frame) == (33, 8)
    assert decoder.synthesise([one])[0].shape == (1984, 256, 3)


def test_it_is_refused_where_it_does_not_exist(folder: Path) -> None:
    assert not DecoderSettings().official_tiling
    with pytest.raises(ServiceError, match="needs torch"):
        build_generator(folder, "onnx", 1, official_tiling=True)
    (folder / "bundle.json").write_text(json.dumps({"profile": "nano"}))
    with pytest.raises(BundleError, match="no official tiling"):
        TorchGenerator(folder, official_tiling=True)
