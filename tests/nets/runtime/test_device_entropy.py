"""Entropy decoding on a device: torch on the CPU in its place, and models whose numbers are wrong in every way."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aeic.bundle import Bundle
from aeic.entropy_model import EntropyModel
from aeic.errors import BitstreamError
from aeic.latent_codec import LatentCodec, Latents
from aeic.runtime.device_check import CHECKS_AT_ONCE, FRAMES_PER_CHECK, Tally
from aeic_nets.integer.model import IntegerModel
from aeic_nets.integer.torch_ops import TorchEntropyModel
from aeic_nets.runtime import device_entropy
from aeic_nets.runtime.cuda_graphs import Graphed
from aeic_nets.runtime.device_entropy import DeviceEntropy, build
from tests.support.fake_cuda_device import FakeRecorder
from tests.support.frames import MakeFrame, frame_maker
from tests.support.models.exact_models import write_exact_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(write_exact_bundle(tmp_path_factory.mktemp("exact"), integers=True))


@pytest.fixture(scope="module")
def make_frame(bundle: Bundle) -> MakeFrame:
    return frame_maker(bundle)


class Lying:
    """The bundle's own graphs; ``lie`` may change what a pass gives, or raise."""

    def __init__(self, bundle: Bundle, lie: Callable[[Any], None]) -> None:
        self._model, self._lie = EntropyModel(bundle, 1), lie
        self.calls = 0

    def hyper_synthesis(self, z_symbols: Any, height: int, width: int) -> Any:
        return self._model.hyper_synthesis(z_symbols, height, width)

    def context(self, index: int, base: Any) -> Any:
        self.calls += 1
        means, indexes = self._model.context(index, base)
        self._lie(means)
        return means, indexes


def digests(outcomes: list[Any]) -> list[str]:
    assert all(isinstance(outcome, Latents) for outcome in outcomes), outcomes
    return [outcome.digest for outcome in outcomes]


def test_frames_of_several_sizes_decode_as_on_the_cpu(bundle: Bundle, make_frame: MakeFrame) -> None:
    entropy = build(bundle, "cpu", threads=1, check_every=2)
    assert entropy is not None
    frames = [make_frame(seed, *size) for seed in range(3) for size in ((128, 96), (200, 64))]
    wanted = [LatentCodec(bundle, 1).decode(frame).digest for frame in frames]
    assert digests(entropy.decode_many(frames)) == wanted
    assert entropy.take_tally() == Tally(device=0, cpu=6)  # sizes that came once
    for _ in range(2):
        assert digests(entropy.decode_many(frames)) == wanted
    assert entropy.take_tally() == Tally(device=12, cpu=0, checked=6) and entropy.reason == ""


def test_sizes_without_end_cost_few_checks(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check costs three frames on the CPU: one for every second frame would more than double the work."""
    entropy = DeviceEntropy(bundle, Lying(bundle, lambda means: None), threads=1)
    checked: list[Any] = []

    def check(size: tuple[int, int], batch: int) -> bool:
        checked.append(size)
        return True

    monkeypatch.setattr(entropy, "check", check)
    for number in range(400):
        for _ in range(2):
            entropy._trusts((2, 2 + number), 1)
    assert len(checked) <= CHECKS_AT_ONCE + 800 // FRAMES_PER_CHECK
    assert checked[:8] == [(2, 2 + number) for number in range(8)]  # a few sizes do not wait


def test_damage_stays_with_its_frame(bundle: Bundle, make_frame: MakeFrame) -> None:
    entropy = build(bundle, "cpu", threads=1)
    assert entropy is not None
    good, bad = make_frame(1), make_frame(2)
    bad = bad[:-9] + bytes(5) + bad[-4:]
    for _ in range(3):
        outcomes = entropy.decode_many([good, bad, b"noise", good])
        assert [isinstance(outcome, BitstreamError) for outcome in outcomes] == [False, True, True, False]
    assert entropy.reason == "" and entropy.take_tally().mismatches == 0


def test_wrong_known_answers_keep_the_device_from_ever_decoding(bundle: Bundle, make_frame: MakeFrame) -> None:
    def lie(means: Any) -> None:
        means.ravel()[-1] += 1 / 256

    entropy = DeviceEntropy(bundle, Lying(bundle, lie), threads=1)
    frame = make_frame(3)
    wanted = [LatentCodec(bundle, 1).decode(frame).digest]
    assert all(digests(entropy.decode_many([frame])) == wanted for _ in range(3))
    assert "known answers" in entropy.reason
    assert entropy.take_tally() == Tally(device=0, cpu=3, mismatches=1)


def test_only_the_extreme_latent_shows_this_one(bundle: Bundle) -> None:
    """Such as a sum that is rounded only where it is large."""
    entropy = DeviceEntropy(bundle, Lying(bundle, lambda means: None), threads=1)
    model, extreme = entropy._model._model, entropy._known((4, 4))[1][2]

    def context(index: int, base: Any) -> Any:
        means, indexes = Lying.context(model, index, base)
        means[(base == extreme).all((1, 2, 3))] += 1 / 256
        return means, indexes

    model.context = context
    assert not entropy.check((4, 4)) and "differ" in entropy.reason


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_every_pattern_is_asked_in_every_batch(batch: int, bundle: Bundle) -> None:
    entropy = DeviceEntropy(bundle, Lying(bundle, lambda means: None), threads=1)
    asked: list[int] = []
    model, known = entropy._model._model, entropy._known((4, 4))[1]

    def context(index: int, base: Any) -> Any:
        asked.extend(next(n for n in range(3) if (known[n] == row).all()) for row in base)
        return Lying.context(model, index, base)

    model.context = context
    assert entropy.check((4, 4), batch)
    assert set(asked) == {0, 1, 2} and len(asked) % (4 * device_entropy.padded_size(batch)) == 0


def test_a_check_value_that_fails_on_the_device_only_is_no_damage(bundle: Bundle, make_frame: MakeFrame) -> None:
    broken = [False]

    def lie(means: Any) -> None:
        if broken[0]:
            means += 1 / 256

    entropy = DeviceEntropy(bundle, Lying(bundle, lie), threads=1)
    frames = [make_frame(seed) for seed in range(2)]
    wanted = [LatentCodec(bundle, 1).decode(frame).digest for frame in frames]
    for _ in range(2):
        entropy.decode_many(frames)
    assert entropy.take_tally().device == 2
    broken[0] = True
    assert digests(entropy.decode_many(frames)) == wanted
    assert "damaged by the device only" in entropy.reason and entropy.take_tally().mismatches >= 1
    entropy.decode_many(frames)
    assert entropy.take_tally() == Tally(cpu=2)


def test_a_lie_that_no_check_value_shows_is_found_by_the_check_in_service(
    bundle: Bundle, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    entropy = DeviceEntropy(bundle, Lying(bundle, lambda means: None), threads=1, check_every=3)
    frame = make_frame(4)
    decode = entropy._device.decode_many

    def alters(frames: list[bytes]) -> list[Any]:
        outcomes = decode(frames)
        for outcome in outcomes:
            outcome.symbols.ravel()[0] += 1
        return outcomes

    monkeypatch.setattr(entropy._device, "decode_many", alters)
    for _ in range(3):  # the first on the CPU, two unchecked
        entropy.decode_many([frame])
        assert entropy.reason == ""
    wanted = LatentCodec(bundle, 1).decode(frame)
    (found,) = entropy.decode_many([frame])
    assert isinstance(found, Latents) and np.array_equal(found.symbols, wanted.symbols)
    assert entropy.reason == "the latents of a frame differ"


def test_without_memory_the_cpu_decodes_and_the_device_is_tried_again(bundle: Bundle, make_frame: MakeFrame) -> None:
    full = [False]

    def lie(means: Any) -> None:
        if full[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    entropy = DeviceEntropy(bundle, Lying(bundle, lie), threads=1)
    frame = make_frame(5)
    for full[0], where in ((False, "cpu"), (True, "cpu"), (False, "device"), (True, "cpu"), (False, "device")):
        digests(entropy.decode_many([frame]))
        assert entropy.take_tally() == Tally(**{where: 1}), (full, where)
    assert entropy.reason == ""


def test_the_devices_memory_is_free_while_the_cpu_decodes(
    bundle: Bundle, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The synthesis may need it at that moment."""
    full, held = [False], []

    def lie(means: Any) -> None:
        if full[0]:
            tensor = torch.zeros(4)
            held.append(weakref.ref(tensor))
            raise torch.OutOfMemoryError("CUDA out of memory")

    entropy, frame = DeviceEntropy(bundle, Lying(bundle, lie), threads=1), make_frame(5)
    for _ in range(2):
        entropy.decode_many([frame])
    on_cpu, full[0] = entropy._decode_on_cpu, True

    def decode(frames: list[bytes]) -> list[Any]:
        assert [tensor() for tensor in held] == [None]
        return on_cpu(frames)

    monkeypatch.setattr(entropy, "_decode_on_cpu", decode)
    digests(entropy.decode_many([frame]))
    assert held


def test_other_errors_of_the_device_are_raised(bundle: Bundle, make_frame: MakeFrame) -> None:
    broken = [False]

    def lie(means: Any) -> None:
        if broken[0]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    entropy = DeviceEntropy(bundle, Lying(bundle, lie), threads=1)
    for _ in range(2):
        entropy.decode_many([make_frame(6)])
    broken[0] = True
    with pytest.raises(RuntimeError, match="illegal"):
        entropy.decode_many([make_frame(6)])


def test_many_sizes_stay_within_bounds(bundle: Bundle, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_entropy, "MOST_SIZES", 2)
    entropy = DeviceEntropy(bundle, Lying(bundle, lambda means: None), threads=1)
    frames = [make_frame(1, 64 * side, 64) for side in range(1, 12)]
    for frame in frames:
        for _ in range(2):
            digests(entropy.decode_many([frame]))
    assert len(entropy._trusted) == 2 and len(entropy._seen) <= 9


def test_graphs_by_shape_give_the_same_numbers(bundle: Bundle) -> None:
    path, recorder = bundle.auxiliary("integer.npz"), FakeRecorder()
    assert path is not None
    model = IntegerModel.load(path)
    plain = TorchEntropyModel(model)
    graphed = TorchEntropyModel(model, wrap=lambda function: Graphed(function, recorder))
    rng = np.random.default_rng(0)
    for _ in range(3):
        z = rng.integers(-9, 10, (2, bundle.hyper_channels, 1, 2)).astype(np.int32)
        base = plain.hyper_synthesis(z, 4, 6)
        assert np.array_equal(graphed.hyper_synthesis(z, 4, 6), base)
        for index in range(4):
            pairs = zip(graphed.context(index, base), plain.context(index, base), strict=True)
            assert all(np.array_equal(one, other) for one, other in pairs)
    assert len(recorder.recorded) == 5 and recorder.replayed == 10


def test_a_bundle_without_integers_stays_on_the_cpu(tiny_bundle: Path) -> None:
    assert build(Bundle.load(tiny_bundle), "cpu") is None
