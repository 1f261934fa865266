"""Memory is planned from the size: what cannot fit is refused at once, and the answer names what would."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aeic.bundle import default_bundle_path
from aeic.profiles import NANO, SE
from aeic_nets.runtime import memory_plan
from aeic_nets.runtime.torch_backend import TorchGenerator
from cloud_decoder.inference.backend import is_out_of_memory

CPU = torch.device("cpu")


def test_a_picture_that_cannot_fit_is_refused_with_the_size_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 8 << 30)
    memory_plan.check(SE, 1, 34, 60, CPU)
    with pytest.raises(
        memory_plan.TooLargeForMemory, match=r"8192x8192 pixels would take 103\.\d GB.* 2304x2304 pixels"
    ) as error:
        memory_plan.check(SE, 1, 256, 256, CPU)
    assert is_out_of_memory(error.value)
    memory_plan.check(SE, 1, 72, 72, CPU)
    with pytest.raises(memory_plan.TooLargeForMemory):
        memory_plan.check(SE, 1, 76, 76, CPU)
    with pytest.raises(memory_plan.TooLargeForMemory):
        memory_plan.check(SE, 2, 72, 72, CPU)


def test_without_memory_nothing_fits_and_unknown_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 1 << 20)
    with pytest.raises(memory_plan.TooLargeForMemory, match="no picture fits"):
        memory_plan.check(NANO, 1, 4, 4, CPU)
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: None)
    memory_plan.check(SE, 64, 256, 256, CPU)


def test_what_is_free_here_is_known() -> None:
    assert (memory_plan.free_bytes(CPU) or 1) > 0


def test_the_generator_asks_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = TorchGenerator(default_bundle_path())
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 1 << 28)
    with pytest.raises(MemoryError, match="fits"):
        generator(np.zeros((1, 128, 16, 16), np.float32))
