"""Out of memory: the error names the size that would fit and hides the runtime's own message."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import torch

from aeic.profiles import SE
from aeic_nets.runtime import memory_plan
from cloud_decoder.errors import DeviceOutOfMemory
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.inference.subprocess_backend import SharedBuffer
from cloud_decoder.inference.subprocess_child import Child
from tests.support.cloud.cloud import FakeGenerator, running_cloud
from tests.support.frames import MakeFrame


class Planned:
    """Plans for a picture of 8192 x 8192 pixels where 8 GiB are free, whatever it is given."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(memory_plan, "free_bytes", lambda device: 8 << 30)

    def __call__(self, y_hat: np.ndarray) -> np.ndarray:
        memory_plan.check(SE, len(y_hat), 256, 256, torch.device("cpu"))
        raise AssertionError("it does not fit")


async def test_the_size_that_would_fit_reaches_the_caller(
    decoder: Decoder,
    generator: FakeGenerator,
    make_frame: MakeFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        monkeypatch.setattr(generator, "_inner", Planned(monkeypatch))
        answer = await http.post("/v1/decode", content=make_frame(1))
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
        assert "1 of 8192x8192 pixels would take 103" in answer.json()["detail"]
        assert "at most 2304x2304 pixels fit" in answer.json()["detail"]


def test_it_crosses_from_the_generators_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, y_hat = SharedBuffer(), np.zeros((1, 8, 4, 4), np.float32)
    inbox.write(y_hat)
    child = Child(inbox, SharedBuffer())
    child._generator = cast(Any, Planned(monkeypatch))
    answer = child.answer({"shape": list(y_hat.shape), "pictures": False})
    assert answer["failed"] == "memory" and "at most 2304x2304 pixels fit" in answer["what"]


def test_a_runtimes_words_on_its_allocator_stay_here(decoder: Decoder, generator: FakeGenerator) -> None:
    generator.most = 0
    with pytest.raises(DeviceOutOfMemory, match=r"latents of 1 x 8 x 4 x 4: onnx does not have the memory") as failure:
        decoder.run([np.zeros((8, 4, 4), np.float32)])
    assert "requested buffer" not in str(failure.value)
