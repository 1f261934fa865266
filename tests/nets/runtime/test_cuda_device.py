"""The torch backend on a GPU, with the CPU in its place: dtype, memory, padding, NaN and failures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aeic.profiles import LATENT_STRIDE, NANO
from aeic_nets.network import AEIC
from aeic_nets.runtime import memory_plan
from aeic_nets.runtime.cuda_device import CudaDevice
from aeic_nets.runtime.cuda_graphs import MOST_SHAPES, CudaRecorder, Graphed
from aeic_nets.runtime.precision import cuda_dtype
from aeic_nets.runtime.torch_backend import TILE, TorchGenerator
from aeic_train.export.bundle import write_weights
from tests.support.fake_cuda_device import FakeCudaDevice, FakeRecorder

TILE_PIXELS = (TILE * LATENT_STRIDE) ** 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    write_weights(AEIC(NANO), folder / "weights.safetensors")
    (folder / "bundle.json").write_text(json.dumps({"profile": "nano"}))
    return folder


def latents(count: int = 1, side: int = 2, seed: int = 0) -> np.ndarray:
    shape = (count, NANO.latent_channels, side, side)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("gpu", "capability", "dtype"),
    [
        ("B200", (10, 0), torch.bfloat16),
        ("RTX 4090", (8, 9), torch.bfloat16),
        ("RTX 2080", (7, 5), torch.float16),
        ("GTX 1080 Ti", (6, 1), torch.float32),
    ],
)
def test_the_dtype_follows_the_capability(
    gpu: str, capability: tuple[int, int], dtype: torch.dtype, bundle: Path
) -> None:
    assert cuda_dtype(capability) == dtype
    generator = TorchGenerator(bundle, gpu=FakeCudaDevice(capability))
    assert generator.dtype == dtype
    y_hat = latents()
    picture, wanted = generator(y_hat), TorchGenerator(bundle, dtype=torch.float32)(y_hat)
    assert np.abs(picture - wanted).mean() < (1e-6 if dtype == torch.float32 else 0.05)


def test_batches_are_padded_to_a_power_of_two_and_each_shape_is_one_graph(bundle: Path) -> None:
    gpu = FakeCudaDevice()
    generator = TorchGenerator(bundle, gpu=gpu, dtype=torch.float32)
    wanted = TorchGenerator(bundle, dtype=torch.float32)(latents(7))
    for count in (1, 2, 3, 4, 5, 6, 7):
        for _ in range(2):
            np.testing.assert_allclose(generator(latents(7)[:count]), wanted[:count], atol=1e-5)
    assert {shape[0] for shape in gpu.recording.recorded} == {1, 2, 4, 8} and len(gpu.recording.recorded) == 4
    assert generator.memory == {"allocated": 1, "reserved": 2} and gpu.entered == 14
    generator(latents(1, side=4))
    assert set(generator.parts) == {"g_s", "unet", "vae"}


def test_padding_never_asks_for_more_memory_than_there_is(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeCudaDevice()
    generator = TorchGenerator(bundle, gpu=gpu)
    needed = memory_plan.activation_bytes(NANO, 3 * (2 * LATENT_STRIDE) ** 2)
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: needed)
    for _ in range(2):
        assert len(generator.pictures(latents(3))) == 3
    assert [shape[0] for shape in gpu.recording.recorded] == [3]


@pytest.mark.parametrize(("tiles", "wanted"), [(8, [1, 2, 4]), (3, [1, 2]), (1, [1])])
def test_warm_up_runs_what_the_limits_admit(
    tiles: int, wanted: list[int], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service's own cap is four tiles; a batch of eight never occurs and must not be planned."""
    generator = TorchGenerator(bundle, gpu=FakeCudaDevice())
    run: list[int] = []
    monkeypatch.setattr(generator, "pictures", lambda y_hat: run.append(len(y_hat)))
    free = memory_plan.activation_bytes(NANO, tiles * TILE_PIXELS) + 4096
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: free)
    room = generator.warm_up(8, 4 * TILE_PIXELS)
    assert sorted(set(run)) == wanted
    assert room is not None and tiles * TILE_PIXELS <= room < (tiles + 1) * TILE_PIXELS


@pytest.mark.parametrize("most", [2, 1, 0])
def test_a_card_that_runs_out_of_memory_starts_with_smaller_batches(
    most: int, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = TorchGenerator(bundle, gpu=FakeCudaDevice())

    def pictures(y_hat: np.ndarray) -> None:
        if len(y_hat) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generator, "pictures", pictures)
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 1 << 40)
    assert generator.warm_up(8, 8 * TILE_PIXELS) == max(1, most * TILE_PIXELS)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_drops_the_graphs_and_tries_again(
    error: Exception, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeCudaDevice()
    generator = TorchGenerator(bundle, gpu=gpu, dtype=torch.float32)
    for _ in range(3):
        wanted = generator(latents())
    synthesise, full = generator._synthesise, [True]

    def fails_once(values: Tensor, clock: Any = None) -> Tensor:
        if full.pop() if full else False:
            raise error
        return synthesise(values, clock)

    assert generator._graphed is not None
    generator._graphed._graphs[next(iter(generator._graphed.shapes))] = fails_once
    monkeypatch.setattr(generator, "_synthesise", fails_once)
    np.testing.assert_array_equal(generator(latents()), wanted)
    assert gpu.released == 1 and generator._graphed.shapes == []


@pytest.mark.parametrize("capability", [(8, 9), (7, 5)])
def test_a_picture_that_is_not_finite_is_computed_again_in_float32(
    capability: tuple[int, int], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = TorchGenerator(bundle, gpu=FakeCudaDevice(capability))
    y_hat = latents(2)
    wanted = TorchGenerator(bundle, dtype=torch.float32).pictures(y_hat)
    synthesise = generator._synthesise

    def overflows(values: Tensor, clock: Any = None) -> Tensor:
        pictures = synthesise(values, clock)
        pictures[1, 0, 3, 3] = torch.nan
        return pictures

    monkeypatch.setattr(generator, "_synthesise", overflows)
    monkeypatch.setattr(generator, "_graphed", None)
    got = generator.pictures(y_hat)
    assert generator.recomputed == 1
    assert np.abs(got[1].astype(int) - wanted[1]).mean() < 1.0  # float32, with weights rounded to half precision
    assert np.abs(got[0].astype(int) - wanted[0]).mean() < 8.0
    assert all(parameter.dtype in (generator.dtype, torch.float32) for parameter in generator._model.parameters())


def test_float32_takes_the_memory_of_the_graphs_where_it_lacks_some(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second copy of the weights beside all graphs: more than a small GPU has."""
    gpu = FakeCudaDevice((7, 5))
    generator = TorchGenerator(bundle, gpu=gpu)
    again, y_hat = generator._again_in_float32, latents()
    for _ in range(2):
        generator.pictures(y_hat)

    def without_room(values: Tensor, pictures: Tensor, rows: list[int]) -> Tensor:
        if not gpu.released:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return again(values, pictures, rows)

    assert generator._graphed is not None
    (shape,) = generator._graphed.shapes
    replay = generator._graphed._graphs[shape]
    generator._graphed._graphs[shape] = lambda values: replay(values) * torch.inf
    monkeypatch.setattr(generator, "_again_in_float32", without_room)
    wanted = TorchGenerator(bundle, dtype=torch.float32).pictures(y_hat)
    assert np.abs(generator.pictures(y_hat).astype(int) - wanted).mean() < 1.0
    assert gpu.released == 1 and generator.recomputed == 1 and generator.take_counts() == {"recomputed": 1}


@pytest.mark.parametrize("call", ["pictures", "__call__"])
def test_a_picture_that_stays_infinite_is_refused(call: str, bundle: Path) -> None:
    generator = TorchGenerator(bundle, gpu=FakeCudaDevice())
    y_hat = latents()
    y_hat[0, 0, 0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        getattr(generator, call)(y_hat)
    assert generator.recomputed == 1


def test_a_failed_card_is_noticed(bundle: Path) -> None:
    gpu = FakeCudaDevice()
    generator = TorchGenerator(bundle, gpu=gpu)
    assert generator.usable
    gpu.failed = True
    assert not generator.usable
    assert TorchGenerator(bundle).usable


def test_many_sizes_in_turn_are_not_recorded_again_and_again() -> None:
    """Eight batch sizes of twelve picture sizes, the frequent ones more often; padded to four batch sizes each."""
    recorder, rng = FakeRecorder(), np.random.default_rng(0)
    same = Graphed(lambda x: x, recorder)
    sizes = np.minimum(rng.geometric(0.35, 2000), 12)
    for size, count in zip(sizes, rng.integers(1, 9, 2000), strict=True):
        same(torch.empty(1 << (int(count) - 1).bit_length(), int(size)))
    assert len(recorder.recorded) <= 100 and len(same.shapes) == MOST_SHAPES
    assert recorder.replayed > 1200
    assert Counter(shape[1] for shape in same.shapes)[1] >= 3  # the commonest picture keeps its graphs


def test_the_second_card_is_used_and_not_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CUDA here: what is asked of torch.cuda is noted."""
    asked: list[tuple[str, Any]] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None: ...

        def record(self, stream: str) -> None:
            asked.append(("record", stream))

    second = torch.device("cuda:1")
    patch = monkeypatch.setattr
    patch(torch.cuda, "get_device_capability", lambda device: (8, 6) if device == second else (0, 0))
    patch(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    patch(torch.cuda, "Event", Event)
    patch(torch.cuda, "synchronize", lambda device: asked.append(("synchronize", device)))
    patch(torch.cuda, "memory_allocated", lambda device: 1 if device == second else 0)
    patch(torch.cuda, "memory_reserved", lambda device: 2)
    patch(torch.cuda, "graph_pool_handle", lambda: "pool")
    gpu = CudaDevice(second)
    assert gpu.capability == (8, 6)
    gpu.mark()
    gpu.synchronise()
    assert gpu.memory == {"allocated": 1, "reserved": 2}
    recorder = gpu.recorder()
    assert isinstance(recorder, CudaRecorder) and recorder._device == second
    assert asked == [
        ("record", "stream of cuda:1"),
        ("synchronize", second),
    ]


@pytest.mark.parametrize("call", ["synchronise", "release"])
def test_nobody_waits_for_the_device_while_a_graph_is_recorded(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA would refuse it and spoil the recording, in any thread: there is one more for entropy decoding."""
    recording, refused, streams = [False], [], []

    @contextmanager
    def graph(made: Any, *, pool: str, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        streams.append(stream)  # torch's default one is shared by all threads
        recording[0] = True
        yield
        recording[0] = False

    def whole_device(*arguments: Any) -> None:
        refused.append(recording[0])

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda given: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "synchronize", whole_device)
    monkeypatch.setattr(torch.cuda, "empty_cache", whole_device)
    gpu = CudaDevice(torch.device("cuda:0"))
    other = Thread(target=getattr(gpu, call))

    def function(values: Tensor) -> Tensor:
        if recording[0]:
            other.start()
            other.join(0.2)  # it waits, or has been refused by now
        return values

    one, two = gpu.recorder(), gpu.recorder()
    one(function, torch.ones(2))
    other.join(10)
    two(lambda values: values, torch.ones(2))
    assert refused == [False] and streams[0] is not streams[1]
