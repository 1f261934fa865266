"""Large pictures in tiles: the latents of the whole picture, at little more than its cost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from aeic.bundle import Bundle
from aeic.errors import BundleError
from aeic.runtime import cuda
from edge_encoder.encoding import ProviderChoice, analysis, execution_provider
from edge_encoder.encoding.analysis import PARTS, Analysis, Part, _cuts

SHIPPED = Path(__file__).parents[3] / "models" / "aeic-se-nano"


def picture(width: int, height: int) -> np.ndarray:
    """Noise over a gradient: every pixel matters."""
    noise = np.random.default_rng(0).integers(0, 64, (height, width, 3))
    return (np.linspace(0, 190, width)[None, :, None] + noise).astype(np.uint8)


def test_tiles_give_the_latents_of_the_whole_picture() -> None:
    bundle = Bundle.load(SHIPPED)
    rgb = picture(1216, 960)
    whole = Analysis(bundle, provider="cpu", threads=1, whole_pixels=1 << 30)(rgb)
    tiled = Analysis(bundle, provider="cpu", threads=1)(rgb)
    assert whole.shape == tiled.shape
    np.testing.assert_allclose(tiled, whole, atol=2e-4)


def test_a_halo_that_is_too_small_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: tiles read without most of what they see."""
    monkeypatch.setattr("edge_encoder.encoding.analysis.PARTS", (Part(4, 8, 208), *PARTS[1:]))
    bundle, rgb = Bundle.load(SHIPPED), picture(1216, 960)
    whole = Analysis(bundle, provider="cpu", threads=1, whole_pixels=1 << 30)(rgb)
    assert np.abs(Analysis(bundle, provider="cpu", threads=1)(rgb) - whole).max() > 2e-4


def test_only_the_rows_that_are_still_needed_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The features of the first part at full size would take 8 bytes a pixel."""
    held: dict[int, int] = {}

    def noted(self: analysis._Bands) -> None:
        compute(self)
        kept = sum(band.nbytes for _, band in self._bands)
        held[self._part.halo] = max(held.get(self._part.halo, 0), kept)

    compute = analysis._Bands._compute
    monkeypatch.setattr(analysis._Bands, "_compute", noted)
    monkeypatch.setattr(analysis, "TILE_BYTES", 300_000)
    monkeypatch.setattr(analysis, "PARTS", (Part(4, 36, 3), Part(2, 12, 10), Part(4, 37, 10)))
    Analysis(Bundle.load(SHIPPED), provider="cpu", threads=1, whole_pixels=0)(picture(512, 2048))
    assert 0 < held[36] < 0.6 * (512 // 4) * (2048 // 4) * 4 * 32


def test_a_bundle_without_the_graphs_of_the_parts_still_encodes(tmp_path: Path) -> None:
    """That is how bundles of earlier releases are."""
    for file in SHIPPED.iterdir():
        if not file.name.startswith("analysis_"):
            (tmp_path / file.name).symlink_to(file)
    y = Analysis(Bundle.load(tmp_path), provider="cpu", threads=1, whole_pixels=1 << 19)(picture(832, 640))
    assert y.shape == (128, 20, 26) and np.isfinite(y).all()


@pytest.mark.parametrize(("width", "height", "most"), [(1408, 768, 1.0), (1920, 1088, 1.04), (3840, 2176, 1.12)])
def test_little_is_computed_twice_at_sizes_of_cameras(width: int, height: int, most: float) -> None:
    """The first part is more than half of the cost, so its ratio bounds that of the whole."""
    rows, columns = _cuts(height, width, PARTS[0], PARTS[0].samples(height * width))
    read = sum((last - first) * (end - start) for _, _, first, last in rows for _, _, start, end in columns)
    assert read <= most * width * height


def test_a_picture_of_720p_is_analysed_whole() -> None:
    """Its padding alone costs 7 %, so halos would be too much."""
    assert analysis.WHOLE_PIXELS >= 1280 * 768


def test_large_runs_take_turns_and_small_ones_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Counter[str]()
    most = Counter[str]()
    lock = threading.Lock()

    def slow(session: object, features: np.ndarray, options: object) -> np.ndarray:
        kind = "large" if features.shape[2] > 64 else "small"
        with lock:
            running[kind] += 1
            most[kind] = max(most[kind], running[kind])
        time.sleep(0.05)
        with lock:
            running[kind] -= 1
        return features

    monkeypatch.setattr(analysis, "run_bound", slow)
    session: Any = object()
    graph = analysis.Graph(session, 200, threading.Semaphore(1), kept=False)
    large, small = np.zeros((1, 1, 1024, 1024), np.float32), np.zeros((1, 1, 64, 64), np.float32)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(graph, [large, small] * 4))
    assert most["large"] == 1 and most["small"] > 1


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("width", "height"), [(64, 8192), (8192, 64), (3840, 2176), (8192, 8192), (64, 64)])
def test_tiles_cover_everything_once_and_fit(part: Part, width: int, height: int) -> None:
    rows, columns = _cuts(height, width, part, part.samples(height * width))
    for spans, length in ((rows, height), (columns, width)):
        assert spans[0][0] == 0 and spans[-1][1] == length
        for before, after in pairwise(spans):
            assert before[1] == after[0]
        for begin, end, first, last in spans:
            assert 0 <= first <= begin < end <= last <= length
            assert first == 0 or begin - first >= part.halo
            assert last == length or last - end >= part.halo
            assert first % part.stride == last % part.stride == 0
    assert (rows[0][3] - rows[0][2]) * (columns[0][3] - columns[0][2]) <= part.samples(height * width)


class Gpu:
    """ONNX Runtime on the CPU that says it is CUDA, and fails as ``fault`` says, but for runs that empty its arena."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fault: Exception | float | None = None
        self.runs = self.emptied = 0
        opened, run = execution_provider.open_session, execution_provider.run_bound

        def open_session(path: Path, choice: ProviderChoice, threads: int, half: Path | None) -> tuple[Any, str]:
            self.session, _ = opened(path, "cpu", threads)
            return (self.session, cuda.CUDA) if choice == "cuda" else opened(path, "cpu", threads)

        def run_bound(session: Any, image: Any, options: Any = None) -> Any:
            if session is not self.gpu_session:
                return run(session, image, options)
            self.emptied += options is cuda.shrinking()
            self.runs += options is None
            if options is None and isinstance(self.fault, Exception):
                raise self.fault
            return run(session, image) * (np.float32(self.fault) if isinstance(self.fault, float) else 1)

        monkeypatch.setattr(analysis, "open_session", open_session)
        monkeypatch.setattr(analysis, "run_bound", run_bound)
        self.analysis = Analysis(Bundle.load(SHIPPED), provider="cuda", threads=1)
        self.gpu_session = self.session


def test_the_cpu_takes_a_picture_for_which_a_gpu_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, rgb = Gpu(monkeypatch), picture(128, 64)
    wanted = gpu.analysis(rgb)
    for words in ("Available memory of 1 is smaller than requested bytes of 2", "CUDA failure 2: out of memory"):
        gpu.fault = RuntimeError(words)
        np.testing.assert_array_equal(gpu.analysis(rgb), wanted)
    assert gpu.emptied == 2 and gpu.analysis.reason == "" and gpu.analysis.provider == cuda.CUDA
    gpu.fault = None
    gpu.analysis(rgb)
    assert gpu.runs == 4


def test_the_cpu_takes_a_picture_beyond_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, rgb = Gpu(monkeypatch), picture(128, 64)
    wanted, gpu.fault = gpu.analysis(rgb), float("nan")
    np.testing.assert_array_equal(gpu.analysis(rgb), wanted)
    assert gpu.analysis.reason == ""


def test_after_any_other_error_of_a_gpu_the_cpu_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process does not recover from it: every later picture would be refused."""
    gpu, rgb = Gpu(monkeypatch), picture(128, 64)
    wanted, gpu.fault = gpu.analysis(rgb), RuntimeError("CUDA failure 700: an illegal memory access was encountered")
    for _ in range(2):
        np.testing.assert_array_equal(gpu.analysis(rgb), wanted)
    assert gpu.runs == 2 and gpu.emptied == 0
    assert "illegal memory access" in gpu.analysis.reason and gpu.analysis.provider == execution_provider.CPU


def test_auto_measures_the_cpus_runtimes_where_cuda_is_offered_and_fails(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    def fail() -> None:
        raise OSError("libcudnn.so.9: cannot open shared object file")

    measured: list[Path] = []

    def on_the_cpu(path: Path, threads: int, cpu: object) -> tuple[object, str]:
        measured.append(path)
        return cpu, "the faster one"

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda.CUDA, "CPU"])
    monkeypatch.setattr(cuda, "prepare", fail)
    monkeypatch.setattr(execution_provider, "_on_the_cpu", on_the_cpu)
    path = tiny_bundle / "analysis.onnx"
    assert execution_provider.open_session(path, "auto", 1)[1] == "the faster one" and measured == [path]


@pytest.mark.parametrize(
    ("choice", "release", "said"),
    [
        ("cuda", "6.8.0-generic", r"\[edge-gpu\]"),
        ("cuda", "5.15.148-tegra", "docs/how-to/jetson.md"),
        ("tensorrt", "6.8.0-generic", "install TensorRT's libraries"),
    ],
)
def test_a_provider_that_is_missing_names_a_remedy_for_this_machine(
    choice: ProviderChoice, release: str, said: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("platform.release", lambda: release)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BundleError, match=f"provider {choice} does not work here .*{said}"):
        execution_provider.open_session(tiny_bundle / "analysis.onnx", choice, 1)


@pytest.mark.parametrize("choice", ["auto", "cpu"])
def test_a_driver_without_cuda_in_onnx_runtime_is_named_unless_the_cpu_was_chosen(
    choice: ProviderChoice, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(execution_provider, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(execution_provider, "nvidia_driver", lambda: "/dev/nvidiactl")
    execution_provider.open_session(tiny_bundle / "analysis.onnx", choice, 1)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (choice == "auto") and all("aeic doctor" in warning for warning in warnings)
