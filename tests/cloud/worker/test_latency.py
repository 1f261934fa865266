"""How long the worker itself takes: what it adds to a decoding, and how soon it refuses. Run by ``make perf``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path

import numpy as np
import pytest

from aeic.v1 import ingest_pb2 as pb
from aeic_service.errors import Overloaded
from cloud_decoder.inference.decoder import Decoder
from tests.support.cloud.cloud import FakeGenerator, full_cloud, running_cloud
from tests.support.frames import MakeFrame

pytestmark = pytest.mark.perf

ANSWER_SECONDS = 0.05
"""The median refusal comes within this."""


async def seconds_of(work: Awaitable[object]) -> float:
    """How long ``work`` takes until it returns or fails."""
    started = time.perf_counter()
    await asyncio.gather(work, return_exceptions=True)
    return time.perf_counter() - started


async def test_the_worker_adds_less_than_ten_milliseconds_to_a_lone_frame(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with running_cloud(decoder, tmp_path) as cloud:
        overhead = []
        for seed in range(20):
            data = make_frame(seed, 64, 64)
            start = time.perf_counter()
            decoder.decode([data])
            bare = time.perf_counter() - start
            overhead.append(await seconds_of(cloud.backend.decode(data, timeout=5)) - bare)
    assert np.median(overhead) < 0.010


async def test_overload_is_refused_at_once_by_the_worker_and_on_both_wires(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with full_cloud(decoder, generator, make_frame, tmp_path) as full:
        with pytest.raises(Overloaded):
            await full.cloud.backend.decode(full.frames[0], timeout=20)
        waited: dict[str, list[float]] = {"worker": [], "http": [], "grpc": []}
        for data in full.frames:
            waited["worker"].append(await seconds_of(full.cloud.backend.decode(data, timeout=20)))
            waited["http"].append(await seconds_of(full.http.post("/v1/decode", content=data)))
            waited["grpc"].append(await seconds_of(full.grpc.Decode(pb.DecodeRequest(bitstream=data))))
    assert {name: float(np.median(seconds)) < ANSWER_SECONDS for name, seconds in waited.items()} == dict.fromkeys(
        waited, True
    )
