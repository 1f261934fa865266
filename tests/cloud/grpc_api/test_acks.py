"""Consecutive stored frames share one acknowledgement, in order and soon; an edge without a window gets single ones."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from aeic.v1 import ingest_pb2 as pb
from cloud_decoder.grpc_api import acks
from cloud_decoder.grpc_api.acks import AckBatcher

STORED, DUPLICATE = pb.ACK_STATUS_STORED, pb.ACK_STATUS_DUPLICATE


class Clock:
    """The clock of the batcher; it stands still until a test moves it, so that a slow machine changes nothing."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        self._patch = patch
        patch.setattr(acks, "time", SimpleNamespace(monotonic=lambda: self.now))

    def gather_for(self, seconds: float) -> None:
        self._patch.setattr(acks, "GATHER_SECONDS", seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def _resolve(id: bytes, status: pb.AckStatus) -> pb.Ack:
    return pb.Ack(id=id, status=status)


async def _told(batcher: AckBatcher[pb.AckStatus], upto: int = 10**9) -> list[str]:
    sent, answered = [], 0
    async for frames, message in batcher.messages():
        sent.append(f"stored {message.stored}" if message.stored else f"ack {message.ack.id.decode()}")
        assert frames == (message.stored or 1)
        if (answered := answered + frames) >= upto:
            break
    return sent


def _added(window: int, *statuses: pb.AckStatus, end: bool = True) -> AckBatcher[pb.AckStatus]:
    batcher = AckBatcher(window, _resolve)
    for number, status in enumerate(statuses):
        batcher.add(str(number).encode(), status)
    if end:
        batcher.end()
    return batcher


async def test_runs_are_counted_and_the_order_is_kept() -> None:
    batcher = _added(64, STORED, STORED, DUPLICATE, STORED, DUPLICATE, DUPLICATE)
    assert await _told(batcher) == ["stored 2", "ack 2", "stored 1", "ack 4", "ack 5"]


async def test_half_a_window_does_not_wait(clock: Clock) -> None:
    clock.gather_for(3600)
    assert await _told(_added(8, *[STORED] * 8, end=False), 8) == ["stored 4", "stored 4"]


async def test_an_edge_without_a_window_gets_an_ack_for_each_frame() -> None:
    assert await _told(_added(0, STORED, STORED)) == ["ack 0", "ack 1"]


async def test_a_first_frame_and_a_prompt_one_are_answered_at_once_others_are_gathered(clock: Clock) -> None:
    clock.gather_for(3600)
    batcher: AckBatcher[pb.AckStatus] = AckBatcher(64, _resolve)
    async with contextlib.aclosing(batcher.messages()) as messages:
        batcher.add(b"first", STORED)
        assert (await anext(messages))[0] == 1
        coming = asyncio.ensure_future(anext(messages))
        for _ in range(2):
            batcher.add(b"gathered", STORED)
            await asyncio.sleep(0.02)
        assert not coming.done()
        batcher.add(b"prompt", STORED, True)
        assert (await coming)[0] == 3


async def test_gathered_frames_are_answered_when_their_time_is_over(clock: Clock) -> None:
    clock.gather_for(0.2)
    batcher: AckBatcher[pb.AckStatus] = AckBatcher(64, _resolve)
    async with contextlib.aclosing(batcher.messages()) as messages:
        batcher.add(b"first", STORED)
        assert (await anext(messages))[0] == 1
        for _ in range(3):
            batcher.add(b"gathered", STORED)
        assert (await anext(messages))[0] == 3
        clock.now += 0.2  # a quiet time
        batcher.add(b"first again", STORED)
        assert (await anext(messages))[0] == 1
