"""The encoder's entropy model on a GPU: ONNX Runtime on the CPU in its place, and sessions that fail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
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
from aeic.runtime.capture_gate import CaptureGate
from aeic.runtime.device_check import CHECKS_AT_ONCE, FRAMES_PER_CHECK, Tally
from aeic_train.export.gpu_graphs import add_gpu_graphs
from edge_encoder.encoding import execution_provider, gpu_entropy
from edge_encoder.encoding.encoder import Encoder
from edge_encoder.encoding.gpu_entropy import GRAPH, OUTPUTS, GpuEntropy
from edge_encoder.encoding.resident_graph import UNCAPTURED, ResidentGraph
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

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any, options: onnxruntime.RunOptions) -> None:
        self._session.run_with_iobinding(binding, options)
        self.change([value.numpy() for value in binding.get_outputs()])  # the buffers themselves


def resident_of(bundle: Bundle, session: Any, capturing: Any = None) -> ResidentGraph:
    """The graph with buffers in the CPU's memory; ``capturing``: the session for CUDA graphs, if there is one."""
    return ResidentGraph(
        lambda capture: capturing if capture else session, OUTPUTS, device="cpu", capture=capturing is not None
    )


def gpu_of(bundle: Bundle, change: Callable[[list[Any]], None] = lambda outputs: None, **options: Any) -> Any:
    graph = bundle.auxiliary(GRAPH)
    assert graph is not None
    hyper_analysis, entropy = Session(bundle.path / "hyper_analysis.onnx"), resident_of(bundle, Session(graph, change))
    return GpuEntropy(bundle, hyper_analysis, entropy, threads=1, **options)


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
    assert gpu._entropy._plain.emptied == 6  # ONNX Runtime's arena frees nothing by itself
    full[0] = False
    assert encoded(codec, bundle) == wanted and gpu.take_tally() == Tally(device=6)


def test_sizes_without_end_cost_few_checks(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check costs three frames on the CPU: one for every second frame would more than double the work."""
    gpu, checked = gpu_of(bundle), []

    def check(size: tuple[int, int], graph: int) -> bool:
        checked.append(size)
        return True

    monkeypatch.setattr(gpu, "check", check)
    for number in range(400):
        for _ in range(2):
            gpu._trusts((2, 2 + number), UNCAPTURED)
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

    def open_exact(path: Path, threads: int, capture: bool = False) -> Session:
        opened.append(f"{path.name} captures" if capture else path.name)
        return Session(path)

    monkeypatch.setattr(gpu_entropy, "open_exact", open_exact)
    monkeypatch.setattr(gpu_entropy, "ResidentGraph", partial(ResidentGraph, device="cpu"))
    checked: dict[str, Any] = {"entropy": "device", "entropy_check_frames": 1, "cuda_graphs": True}
    encoder = Encoder.from_bundle(bundle.path, 1, provider="cpu", **checked)
    assert opened == ["hyper_analysis.onnx", GRAPH, f"{GRAPH} captures"] and encoder.gpu_entropy is not None
    picture = np.random.default_rng(3).integers(0, 256, (90, 130, 3)).astype(np.uint8)
    wanted = Encoder.from_bundle(bundle.path, 1, provider="cpu").encode(picture).data
    assert [encoder.encode(picture).data for _ in range(3)] == [wanted] * 3
    assert encoder.gpu_entropy.take_tally() == Tally(device=2, cpu=1, checked=2)
    opened.clear()
    plain = Encoder.from_bundle(bundle.path, 1, provider="cpu", entropy="device", cuda_graphs=False)
    assert opened == ["hyper_analysis.onnx", GRAPH] and [plain.encode(picture).data for _ in range(3)] == [wanted] * 3


@pytest.mark.parametrize("capture", [False, True])
def test_no_session_is_opened_on_a_gpu_during_a_capture(
    bundle: Bundle, capture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It allocates there, which would break the capture. One on the CPU does not wait."""
    gate, order = CaptureGate(), []

    class Opened:
        def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
            order.append("CPU" if providers == [cuda.CPU] else "GPU")

        def disable_fallback(self) -> None: ...

        def get_providers(self) -> list[str]:
            return [cuda.CUDA]

    monkeypatch.setattr(execution_provider, "GATE", gate)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Opened)
    with gate.capture():
        opening = threading.Thread(target=execution_provider.open_exact, args=(Path("graph.onnx"), 1, capture))
        opening.start()
        opening.join(0.1)
        execution_provider.open_part(Path("graph.onnx"), cuda.CPU, 1)
        order.append("captured")
    opening.join(30)
    assert order == ["CPU", "captured", "GPU"]


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


class Capturing(Session):
    """Captures as CUDA does. ``wrong``: what a replay adds to y_hat, as a graph that was captured badly would."""

    def __init__(self, path: Path, wrong: float = 0) -> None:
        super().__init__(path)
        self.wrong, self.replays = wrong, 0
        self.captured: list[int] = []

    def run_with_iobinding(self, binding: Any, options: onnxruntime.RunOptions) -> None:
        number = int(options.get_run_config_entry("gpu_graph_id"))
        self._session.run_with_iobinding(binding)
        if number == UNCAPTURED:
            return
        if number not in self.captured:
            self.captured.append(number)
        else:
            self.replays += 1
            binding.get_outputs()[2].numpy()[...] += self.wrong

    def release_captured_graph(self, number: int) -> None:
        self.captured.remove(number)


def captured(bundle: Bundle, wrong: float = 0) -> tuple[Any, Capturing]:
    graph = bundle.auxiliary(GRAPH)
    assert graph is not None
    session = Capturing(graph, wrong)
    entropy: Any = resident_of(bundle, Session(graph), session)
    return GpuEntropy(bundle, Session(bundle.path / "hyper_analysis.onnx"), entropy, threads=1), session


def test_frames_from_cuda_graphs_are_those_of_the_cpu(bundle: Bundle) -> None:
    gpu, session = captured(bundle)
    wanted = encoded(LatentCodec(bundle, 1), bundle)
    assert encoded(LatentCodec(bundle, 1, encoding=gpu), bundle) == wanted and gpu.reason == ""
    assert session.captured == [1, 2] and session.replays == 2 * (3 + 2)  # known answers, and the frames
    assert gpu.take_tally() == Tally(device=4, cpu=2)


def test_known_answers_come_from_the_cuda_graph(bundle: Bundle) -> None:
    """The same kernels, started one by one, are right: only the replay shows this fault."""
    gpu, session = captured(bundle, wrong=1 / 256)
    wanted = encoded(LatentCodec(bundle, 1), bundle)
    assert encoded(LatentCodec(bundle, 1, encoding=gpu), bundle) == wanted
    assert "known answers" in gpu.reason and session.replays == 1 and gpu.take_tally() == Tally(cpu=6, mismatches=1)


def test_a_size_that_is_captured_again_is_checked_again(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, session = captured(bundle)
    codec, wanted = LatentCodec(bundle, 1, encoding=gpu), encoded(LatentCodec(bundle, 1), bundle)
    encoded(codec, bundle)
    y, z_symbols = latent(bundle, 0, *SIZES[0]), np.zeros((bundle.hyper_channels, 1, 1), np.int32)
    inputs = gpu_entropy._inputs(y, z_symbols)
    gpu._entropy.make_room(inputs, gpu_entropy._smallest(inputs))
    gpu._entropy._lacked.clear()  # it may be captured again
    session.wrong = 1 / 256  # from now on
    assert session.captured == [2] and encoded(codec, bundle) == wanted
    assert session.captured == [2, 3] and "known answers" in gpu.reason


@pytest.mark.parametrize("where", ["known answers", "in service"])
def test_a_size_that_lacks_memory_costs_no_other_its_graph_and_its_known_answers(bundle: Bundle, where: str) -> None:
    """Every frame of the large size fails. The small one goes on by its graph, and new ones get their checks."""
    gpu, session = captured(bundle)
    small, large = SIZES[1], SIZES[0]
    full, run = [where == "known answers"], session.run_with_iobinding

    def run_with_iobinding(binding: Any, options: onnxruntime.RunOptions) -> None:
        if full[0] and binding.get_outputs()[2].shape()[2:] == list(latent(bundle, 0, *large).shape[1:]):
            raise RuntimeError("Available memory of 4096 is smaller than requested bytes of 8192")
        run(binding, options)

    session.run_with_iobinding = run_with_iobinding  # type: ignore[method-assign]  # the fault
    plain, codec, exact = gpu._entropy._plain, LatentCodec(bundle, 1, encoding=gpu), LatentCodec(bundle, 1)
    checks: list[tuple[tuple[int, int], int]] = []
    check = gpu.check

    def counted(size: tuple[int, int], graph: int) -> bool:
        checks.append((size, graph))
        return bool(check(size, graph))

    gpu.check = counted

    def lacks(outputs: list[Any]) -> None:
        if full[0] and outputs[2].shape[2:] == latent(bundle, 0, *large).shape[1:]:
            raise RuntimeError("CUDA failure 2: out of memory")

    plain.change = lacks

    def frames(size: tuple[int, int], count: int) -> None:
        for seed in range(count):
            y = latent(bundle, seed, *size)
            assert codec.encode(y, 0, *size) == exact.encode(y, 0, *size)

    frames(small, 3)
    if where == "in service":
        frames(large, 3)
        full[0] = True
    gpu.take_tally()
    checks.clear()
    replays = session.replays
    for _ in range(2 * CHECKS_AT_ONCE):
        frames(large, 1)
        frames(small, 1)
    assert session.replays == replays + 2 * CHECKS_AT_ONCE and session.captured == [1] and gpu.reason == ""
    assert gpu.take_tally() == Tally(device=2 * CHECKS_AT_ONCE, cpu=2 * CHECKS_AT_ONCE)
    assert len(checks) <= 3, "its checks take the allowance of the other sizes"
    full[0] = False
    frames(large, FRAMES_PER_CHECK + 1)
    assert gpu.take_tally().device >= 1, "it is not tried again"


def test_where_no_graph_can_be_captured_the_gpu_goes_on_without(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, session = captured(bundle)
    plain = session.run_with_iobinding

    def run(binding: Any, options: onnxruntime.RunOptions) -> None:
        if options.get_run_config_entry("gpu_graph_id") != str(UNCAPTURED):
            raise RuntimeError("CUDA failure 906: operation would make the legacy stream depend on a capturing stream")
        plain(binding, options)

    monkeypatch.setattr(session, "run_with_iobinding", run)
    wanted = encoded(LatentCodec(bundle, 1), bundle)
    assert encoded(LatentCodec(bundle, 1, encoding=gpu), bundle) == wanted
    assert gpu.reason == "" and not gpu._entropy.captures and session.captured == []
    assert gpu.take_tally() == Tally(device=3, cpu=3)  # first frames, and the one of the capture
