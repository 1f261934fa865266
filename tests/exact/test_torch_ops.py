"""The torch interpreter agrees with the reference to the bit: batched, at extremes, and through whole frames."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aeic.bundle import Bundle
from aeic.errors import BitstreamError
from aeic.latent_codec import LatentCodec
from aeic.passes import PASS_COUNT, gather
from aeic_nets.integer.model import IntegerModel
from aeic_nets.integer.reference import Reference
from aeic_nets.integer.scale_index import symbol_limits
from aeic_nets.integer.torch_ops import TorchEntropyModel, TorchOps
from tests.support.models.exact_models import MODELS, SMALL, bases, small_model, write_exact_bundle

M, CZ = SMALL.latent_channels, SMALL.hyper_channels


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", bases())
def test_contexts_agree_with_the_reference(kind: str, name: str) -> None:
    base, model = bases()[name], small_model(0, MODELS[kind])
    ours, reference = TorchEntropyModel(model), Reference(model)
    for index in range(PASS_COUNT):
        means, indexes = ours.context(index, base)
        want_means, want_indexes = reference.context(index, base)
        np.testing.assert_array_equal(means, gather(want_means, index))
        np.testing.assert_array_equal(indexes, gather(want_indexes, index))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_encoder_quantises_as_the_reference_does(kind: str, batch: int) -> None:
    model, rng = small_model(0, MODELS[kind]), np.random.default_rng(batch)
    y = (rng.normal(size=(batch, M, 6, 10)) * rng.choice([1, 5, 400], (batch, M, 1, 1))).astype(np.float32)
    z = rng.integers(-60, 61, (batch, CZ, 2, 3)).astype(np.int32)
    found = TorchEntropyModel(model).quantise(y, z)
    wanted = Reference(model).entropy(y, z, symbol_limits())
    assert len(found) == len(wanted)
    assert all(np.array_equal(got, want) for got, want in zip(found, wanted))


def test_frames_decode_as_by_the_graphs(tmp_path: Path) -> None:
    """decode_many by torch: frames of two sizes in one call, and a damaged one that harms no other."""
    bundle = Bundle.load(write_exact_bundle(tmp_path))
    codec = LatentCodec(bundle, threads=1)
    batched = LatentCodec(bundle, threads=1, decoding=TorchEntropyModel(_model_of(bundle)))
    rng, frames = np.random.default_rng(5), []
    for width, height in ((320, 192), (320, 192), (128, 64), (320, 192)):
        y = (4 * rng.standard_normal((M, -(-height // 64) * 2, -(-width // 64) * 2))).astype(np.float32)
        frames.append(codec.encode(y, 0, width, height))
    frames[1] = frames[1][:-8] + bytes(4) + frames[1][-4:]
    outcomes = batched.decode_many(frames)
    with pytest.raises(BitstreamError):
        codec.decode(frames[1])
    assert isinstance(outcomes[1], BitstreamError)
    for number in (0, 2, 3):
        outcome = outcomes[number]
        assert not isinstance(outcome, BitstreamError) and outcome.digest == codec.decode(frames[number]).digest


def test_a_product_that_loses_a_bit_is_caught() -> None:
    """The planted fault: an accumulator of float16 precision, which a GPU could be configured to use."""

    class Coarse(TorchOps):
        def wide(self, x: Any, layer: str) -> torch.Tensor:
            return super().wide(x, layer).half().float()

    model, base = small_model(), bases()["wide"]
    ours = TorchEntropyModel(model)
    ours._ops = Coarse(model, torch.device("cpu"))
    found, (want, _) = ours.context(0, base)[0], Reference(model).context(0, base)
    assert not np.array_equal(found, gather(want, 0))


def test_float16_factors_need_cuda() -> None:
    with pytest.raises(ValueError, match="CUDA"):
        TorchEntropyModel(small_model(), "cpu", "float16")


def test_it_needs_neither_onnx_nor_compressai() -> None:
    """A cloud with torch has neither package."""
    code = "import sys; import aeic_nets.integer.torch_ops; sys.exit(bool({'onnx', 'compressai'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_the_graph_for_gpus_is_written_without_compressai() -> None:
    """The session on a GPU writes it with the packages of a cloud and onnx."""
    code = "import sys; import aeic_nets.integer.export; sys.exit('compressai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def _model_of(bundle: Bundle) -> IntegerModel:
    """The integer model that :func:`write_exact_bundle` makes, with the bundle's medians."""
    from aeic_nets.integer.calibrate import calibrate, quantise
    from tests.support.models.exact_models import latents, small_codec

    codec = small_codec()
    return quantise(codec, calibrate(codec, latents()), bundle.tables.medians)
