"""Two buffers in turn, with a GPU whose copies happen as late as they may."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aeic.profiles import NANO
from aeic_nets.network import AEIC
from aeic_nets.runtime.pinned_output import Fetch, PinnedOutput, plain
from aeic_nets.runtime.torch_backend import TorchGenerator
from aeic_train.export.bundle import write_weights
from cloud_decoder.inference.decoder import Decoder
from edge_encoder.encoding.encoder import Encoder
from tests.support.fake_cuda_device import FakeCopier, FakeCudaDevice


def batch(value: int, size: int = 6) -> Tensor:
    return torch.full((2, size), value, dtype=torch.uint8)


def test_each_batch_is_its_own_while_the_next_one_is_on_its_way() -> None:
    copier = FakeCopier()
    output = PinnedOutput(copier)
    before = output.start(batch(1))
    for value in range(2, 8):
        now = output.start(batch(value))
        assert (before() == value - 1).all()
        before = now
    assert (before() == 7).all() and copier.sizes == [12, 12] and copier.copied == 7


def test_a_result_waits_for_its_copy_and_no_longer() -> None:
    copier = FakeCopier()
    output = PinnedOutput(copier)
    first, second = output.start(batch(1)), output.start(batch(2))
    assert copier.copied == 0
    assert (first() == 1).all() and copier.copied == 1
    assert (second() == 2).all() and copier.copied == 2


@pytest.mark.parametrize("quick", [False, True])
def test_what_nobody_has_read_survives_the_next_batches(quick: bool) -> None:
    copier = FakeCopier()
    output = PinnedOutput(copier)
    fetches = [output.start(batch(value)) for value in range(7)]
    if quick:
        copier.finish()
    assert [int(fetch()[0, 0]) for fetch in fetches] == list(range(7))


def test_a_buffer_is_not_written_before_what_is_in_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: without the wait, a later batch is in its place."""
    monkeypatch.setattr(Fetch, "give_way", lambda self: None)
    copier = FakeCopier()
    output = PinnedOutput(copier)
    fetches = [output.start(batch(value)) for value in range(4)]
    copier.finish()
    assert [int(fetch()[0, 0]) for fetch in fetches] != list(range(4))


def test_what_could_not_be_set_aside_keeps_its_buffer() -> None:
    """For want of memory: the error is that of the batch which came too soon, and both others stay right."""
    copier = FakeCopier()
    output = PinnedOutput(copier)
    first, second = output.start(batch(1)), output.start(batch(2))

    class Full(np.ndarray):
        def copy(self, *arguments: Any) -> Any:
            raise MemoryError

    first._array = first._array.view(Full)
    with pytest.raises(MemoryError):
        output.start(batch(3))
    later = [output.start(batch(value)) for value in (4, 5, 6)]
    copier.finish()
    assert [int(fetch()[0, 0]) for fetch in (first, second, *later)] == [1, 2, 4, 5, 6]


def test_a_result_that_does_not_wait_is_not_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: the other wait."""
    monkeypatch.setattr(Fetch, "_arrive", lambda self: None)
    assert (PinnedOutput(FakeCopier()).start(batch(1))() != 1).any()


@pytest.mark.parametrize("fault", [False, True])
def test_the_tensor_lives_until_its_copy_has_ended(fault: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: its memory goes to another tensor while the copy is still to come."""
    if fault:

        def too_early(self: Fetch) -> None:
            self._source = None
            self._wait()

        monkeypatch.setattr(Fetch, "_arrive", too_early)
    fetch = PinnedOutput(FakeCopier()).start(batch(2))
    assert (fetch() == 2).all() != fault


def test_buffers_grow_and_serve_other_types() -> None:
    copier = FakeCopier()
    output = PinnedOutput(copier)
    for size in (4, 9, 2, 9, 5):
        assert (output.start(batch(size, size))() == size).all()
        assert output.start(torch.full((3, size), 0.5))().dtype == np.float32
    assert copier.sizes == [8, 48, 18, 108]


def test_where_no_memory_can_be_locked_the_copy_is_a_plain_one(caplog: pytest.LogCaptureFixture) -> None:
    copier = FakeCopier(most=12)
    output = PinnedOutput(copier)
    with caplog.at_level(logging.WARNING):
        fetches = [output.start(batch(value, size)) for value, size in ((1, 6), (2, 7), (3, 6), (4, 6))]
    assert [int(fetch()[0, 0]) for fetch in fetches] == [1, 2, 3, 4] and "page-locked" in caplog.text


def test_a_cpu_has_nothing_to_wait_for() -> None:
    assert (plain(batch(3))() == 3).all()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    write_weights(AEIC(NANO), folder / "weights.safetensors")
    (folder / "bundle.json").write_text(json.dumps({"profile": "nano"}))
    return folder


def synthesise(self: TorchGenerator, values: Tensor, clock: object = None) -> Tensor:
    """In place of the network, which takes its time."""
    return values[:, :3].repeat_interleave(32, 2).repeat_interleave(32, 3) / 4


@pytest.mark.parametrize("whole", [True, False])
def test_the_generator_computes_a_batch_while_the_one_before_is_copied(
    whole: bool, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchGenerator, "_synthesise", synthesise)
    gpu = FakeCudaDevice()
    generator, plainly = (TorchGenerator(bundle, gpu=one, dtype=torch.float32) for one in (gpu, None))
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((2, NANO.latent_channels, 2, 2)).astype(np.float32) for _ in range(4)]
    wanted = [plainly.pictures(one) if whole else plainly(one) for one in batches]
    before, found = generator.start(batches[0], whole=whole), []
    for number, one in enumerate(batches[1:]):
        now = generator.start(one, whole=whole)
        assert gpu.copying.copied == number, "the copy before is still to be waited for"
        found.append(before().copy())
        before = now
    found.append(before().copy())
    assert all(np.array_equal(got, want) for got, want in zip(found, wanted, strict=True))
    assert generator.overlaps and not plainly.overlaps and len(gpu.copying.sizes) == 2


def test_the_decoder_keeps_one_batch_in_flight(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and tiles are the same, whether their batches overlap or not."""
    decoder = Decoder.from_bundle(tiny_bundle, "onnx")
    rng = np.random.default_rng(0)
    encoder = Encoder.from_bundle(tiny_bundle, 1, provider="cpu")
    sizes = ((64, 64), (64, 64), (128, 64), (64, 64))
    frames = [encoder.encode(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).data for size in sizes]
    wanted = decoder.decode(frames)
    generator = decoder._generator
    events: list[tuple[str, int]] = []
    start = generator.start

    def started(y_hat: np.ndarray, *, whole: bool) -> Callable[[], np.ndarray]:
        number = len([event for event in events if event[0] == "start"])
        events.append(("start", number))
        fetch = start(y_hat, whole=whole)

        def fetched() -> np.ndarray:
            events.append(("take", number))
            return fetch()

        return fetched

    monkeypatch.setattr(generator, "start", started)
    monkeypatch.setattr(type(generator), "overlaps", True)
    assert all(np.array_equal(one, other) for one, other in zip(decoder.decode(frames), wanted, strict=True))
    assert len(events) == 8 and events[:3] == [("start", 0), ("start", 1), ("take", 0)]
    assert events[-2:] == [("take", 2), ("take", 3)]
