"""The encoder's entropy model on a GPU: ONNX Runtime on the CPU in its place, and sessions that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.errors import BundleError
from aeic.latent_codec import LatentCodec
from aeic.runtime import cuda
from aeic.runtime.device_check import CHECKS_AT_ONCE, FRAMES_PER_CHECK, Tally
from aeic_train.export.gpu_graphs import add_gpu_graphs
from edge_encoder.encoding import execution_provider, gpu_entropy
from edge_encoder.encoding.encoder import Encoder
from edge_encoder.encoding.gpu_entropy import GRAPH, GpuEntropy
from tests.support.models.exact_models import write_exact_bundle

SIZES = ((128, 96), (200, 72))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("gpu")
    return add_gpu_graphs(write_exact_bundle(folder / "exact", integers=True), folder / "bundle")


class Session:
    """A session on the CPU in place of one on CUDA. ``change`` may alter its outputs, or raise."""

    def __init__(self, path: Path, change: Callable[[list[Any]], None] = lambda outputs: None) -> None:
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.change, self.emptied = change, 0

    def run(
        self, names: None, inputs: dict[str, NDArray[Any]], options: onnxruntime.RunOptions | None = None
    ) -> list[Any]:
        outputs: list[Any] = self._session.run(names, inputs)
        if options is cuda.shrinking():
            self.emptied += 1
            return outputs
        self.change(outputs)
        return outputs


def gpu_of(bundle: Bundle, change: Callable[[list[Any]], None] = lambda outputs: None, **options: Any) -> Any:
    graph = bundle.auxiliary(GRAPH)
    assert graph is not None
    return GpuEntropy(
        bundle, Session(bundle.path / "hyper_analysis.onnx"), Session(graph, change), threads=1, **options
    )


def latent(bundle: Bundle, seed: int, width: int, height: int) -> NDArray[np.float32]:
    shape = bundle.channels, -(-height // 64) * 2, -(-width // 64) * 2
    return (4 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def encoded(codec: LatentCodec, bundle: Bundle, count: int = 3) -> list[bytes]:
    return [
        codec.encode(latent(bundle, seed, *size), seed % len(bundle.rates), *size)
        for seed in range(count)
        for size in SIZES
    ]


def test_frames_are_those_of_the_cpu_byte_for_byte(bundle: Bundle) -> None:
    gpu = gpu_of(bundle, check_every=2)
    wanted = encoded(LatentCodec(bundle, 1), bundle)
    assert encoded(LatentCodec(bundle, 1, encoding=gpu), bundle) == wanted
    assert gpu.take_tally() == Tally(device=4, cpu=2, checked=2) and gpu.reason == ""  # two sizes that came once


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("when", ["known answers", "in service"])
def test_a_result_that_differs_is_replaced_and_ends_the_use(bundle: Bundle, part: int, when: str) -> None:
    faulty = [when == "known answers"]

    def change(outputs: list[Any]) -> None:
        if faulty[0]:
            outputs[part].ravel()[-1] += 1

    gpu = gpu_of(bundle, change, check_every=1)
    codec, wanted = LatentCodec(bundle, 1, encoding=gpu), encoded(LatentCodec(bundle, 1), bundle)
    if when == "in service":
        assert encoded(codec, bundle) == wanted and gpu.reason == ""
        faulty[0] = True
    assert encoded(codec, bundle) == wanted
    assert ("known answers" if when == "known answers" else "of a frame") in gpu.reason
    gpu.take_tally()
    assert encoded(codec, bundle) == wanted and gpu.take_tally() == Tally(cpu=6)


def test_only_the_extreme_latent_shows_this_one(bundle: Bundle) -> None:
    """Such as a sum that is rounded only where it is large."""

    def change(outputs: list[Any]) -> None:
        outputs[2][np.abs(outputs[2]) > 100] += 1 / 256

    gpu = gpu_of(bundle, change)
    assert not gpu.check((4, 6)) and "differ" in gpu.reason


def test_without_memory_the_cpu_takes_the_frame_and_the_gpu_the_next(bundle: Bundle) -> None:
    full = [False]

    def change(outputs: list[Any]) -> None:
        if full[0]:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 4096")

    gpu = gpu_of(bundle, change)
    codec, wanted = LatentCodec(bundle, 1, encoding=gpu), encoded(LatentCodec(bundle, 1), bundle)
    encoded(codec, bundle)
    gpu.take_tally()
    full[0] = True
    assert encoded(codec, bundle) == wanted and gpu.take_tally() == Tally(cpu=6) and gpu.reason == ""
    assert gpu._entropy.emptied == 6  # ONNX Runtime's arena frees nothing by itself
    full[0] = False
    assert encoded(codec, bundle) == wanted and gpu.take_tally() == Tally(device=6)


def test_sizes_without_end_cost_few_checks(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check costs three frames on the CPU: one for every second frame would more than double the work."""
    gpu, checked = gpu_of(bundle), []

    def check(size: tuple[int, int]) -> bool:
        checked.append(size)
        return True

    monkeypatch.setattr(gpu, "check", check)
    for number in range(400):
        for _ in range(2):
            gpu._trusts((2, 2 + number))
    assert len(checked) <= CHECKS_AT_ONCE + 800 // FRAMES_PER_CHECK
    assert checked[:8] == [(2, 2 + number) for number in range(8)]  # a few sizes do not wait


@pytest.mark.parametrize("words", ["an illegal address", "an illegal memory access was encountered"])
def test_any_other_error_ends_the_use_without_a_mismatch(bundle: Bundle, words: str) -> None:
    def change(outputs: list[Any]) -> None:
        raise RuntimeError(f"CUDA failure 700: {words}")

    gpu = gpu_of(bundle, change)
    wanted = encoded(LatentCodec(bundle, 1), bundle)
    assert encoded(LatentCodec(bundle, 1, encoding=gpu), bundle) == wanted
    assert words in gpu.reason and gpu.take_tally() == Tally(cpu=6)


def test_a_hyper_latent_that_is_not_finite_is_the_cpus(bundle: Bundle) -> None:
    gpu = gpu_of(bundle)

    def change(outputs: list[Any]) -> None:
        outputs[0].ravel()[0] = np.nan

    gpu._hyper_analysis.change = change
    assert encoded(LatentCodec(bundle, 1, encoding=gpu), bundle) == encoded(LatentCodec(bundle, 1), bundle)
    assert "not finite" in gpu.reason


def test_the_encoder_uses_it_on_a_gpu_only(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Encoder.from_bundle(bundle.path, 1, provider="cpu").gpu_entropy is None
    with pytest.raises(BundleError, match="AEIC_EDGE_ENTROPY=cpu"):
        Encoder.from_bundle(bundle.path, 1, provider="cpu", entropy="device")
    opened: list[str] = []

    def open_exact(path: Path, threads: int) -> Session:
        opened.append(path.name)
        return Session(path)

    monkeypatch.setattr(gpu_entropy, "open_exact", open_exact)
    encoder = Encoder.from_bundle(bundle.path, 1, provider="cpu", entropy="device", entropy_check_frames=1)
    assert opened == ["hyper_analysis.onnx", GRAPH] and encoder.gpu_entropy is not None
    picture = np.random.default_rng(3).integers(0, 256, (90, 130, 3)).astype(np.uint8)
    wanted = Encoder.from_bundle(bundle.path, 1, provider="cpu").encode(picture).data
    assert [encoder.encode(picture).data for _ in range(3)] == [wanted] * 3
    assert encoder.gpu_entropy.take_tally() == Tally(device=2, cpu=1, checked=2)


def test_a_bundle_without_the_graph_stays_on_the_cpu(tiny_bundle: Path) -> None:
    without = Bundle.load(tiny_bundle)
    options: dict[str, Any] = {"gpu": True, "threads": 1, "check_every": 1}
    assert gpu_entropy.open_gpu_entropy(without, "auto", **options) is None
    with pytest.raises(BundleError, match=r"has no entropy_gpu\.onnx"):
        gpu_entropy.open_gpu_entropy(without, "device", **options)


def test_operators_left_to_the_cpu_are_named(bundle: Bundle) -> None:
    """All of them are, on the CPU: but none that computes shapes is named."""
    graph = bundle.auxiliary(GRAPH)
    assert graph is not None
    session = execution_provider._session(graph, ["CPUExecutionProvider"], 1)
    found = execution_provider._computed_on_the_cpu(session)
    assert {"MatMul", "Pad", "Round"} <= set(found) and not {"Shape", "Split", "Slice"} & set(found)
