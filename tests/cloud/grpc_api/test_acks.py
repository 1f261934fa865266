"""Answers: runs of stored frames are told together, in order, soon, and never to an edge that cannot count."""

from __future__ import annotations

import asyncio
import time

from aeic.v1 import ingest_pb2 as pb
from cloud_decoder.grpc_api.acks import GATHER_SECONDS, Answers

STORED, DUPLICATE = pb.ACK_STATUS_STORED, pb.ACK_STATUS_DUPLICATE


async def _resolve(id: bytes, status: pb.AckStatus) -> pb.Ack:
    return pb.Ack(id=id, status=status)


async def _told(answers: Answers[pb.AckStatus], upto: int = 10**9) -> list[str]:
    told, answered = [], 0
    async for frames, message in answers.messages():
        told.append(f"stored {message.stored}" if message.stored else f"ack {message.ack.id.decode()}")
        assert frames == (message.stored or 1)
        if (answered := answered + frames) >= upto:
            break
    return told


def _added(window: int, *statuses: pb.AckStatus, end: bool = True) -> Answers[pb.AckStatus]:
    answers = Answers(window, _resolve)
    for number, status in enumerate(statuses):
        answers.add(str(number).encode(), status)
    if end:
        answers.end()
    return answers


def test_runs_are_counted_and_the_order_is_kept() -> None:
    answers = _added(64, STORED, STORED, DUPLICATE, STORED, DUPLICATE, DUPLICATE)
    assert asyncio.run(_told(answers)) == ["stored 2", "ack 2", "stored 1", "ack 4", "ack 5"]


def test_half_a_window_does_not_wait() -> None:
    answers = _added(8, *[STORED] * 8, end=False)
    begin = time.monotonic()
    assert asyncio.run(_told(answers, 8)) == ["stored 4", "stored 4"]
    assert time.monotonic() - begin < GATHER_SECONDS


def test_an_edge_without_a_window_gets_every_ack() -> None:
    assert asyncio.run(_told(_added(0, STORED, STORED))) == ["ack 0", "ack 1"]


def test_a_first_frame_and_a_prompt_one_are_answered_at_once_others_are_gathered() -> None:
    async def scenario() -> None:
        answers: Answers[pb.AckStatus] = Answers(64, _resolve)
        times: list[tuple[int, float]] = []

        async def listen() -> None:
            async for frames, _ in answers.messages():
                times.append((frames, time.monotonic()))

        listening = asyncio.create_task(listen())
        begin = time.monotonic()
        answers.add(b"first", STORED)
        await asyncio.sleep(0.02)
        for _ in range(3):
            answers.add(b"gathered", STORED)
        await asyncio.sleep(GATHER_SECONDS + 0.1)
        answers.add(b"gathered", STORED)
        await asyncio.sleep(0.02)
        answers.add(b"gathered", STORED)
        answers.add(b"prompt", STORED, True)
        await asyncio.sleep(0.05)
        answers.end()
        await listening
        assert [frames for frames, _ in times] == [1, 3, 3]
        assert times[0][1] - begin < 0.1
        assert GATHER_SECONDS - 0.01 <= times[1][1] - times[0][1] < GATHER_SECONDS + 0.1
        assert times[2][1] - times[1][1] < GATHER_SECONDS

    asyncio.run(scenario())
