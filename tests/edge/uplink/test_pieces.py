"""A picture file is sent in pieces, never more of it than its request may cost, whatever the cloud answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from aeic.v1 import ingest_pb2 as pb
from edge_encoder.answers.answerer import File, Ignored, Interrupted, PictureRequest, RefusalReason, Refused, Send
from edge_encoder.answers.hourly_budget import PIECE_HEAD_BYTES, REQUEST_BYTES, bytes_in_pieces
from edge_encoder.metrics import Metrics
from edge_encoder.uplink.pieces import LEAST_BYTES, MOST_BYTES, PieceSize
from edge_encoder.uplink.stream import Call, Callbacks, Stream, StreamContext
from edge_encoder.uplink.window import Window
from tests.support.edge.fakes import settings

REQUEST = bytes(6) + b"\x80" + bytes(1) + b"\x80" + bytes(7)  # a UUID of version 8
SIZE = 1 << 16


class Cloud:
    """gRPC's call, with a cloud at its end that has `received` bytes of any file, or answers nothing."""

    def __init__(self, received: int | None = 0, *, takes: bool = False) -> None:
        self.received, self.takes = received, takes
        self.loses = 0  # pieces
        self.sent: list[pb.DeliverRequest] = []
        self.stream: Stream

    async def write(self, message: pb.DeliverRequest) -> None:
        self.sent.append(message)
        if message.WhichOneof("message") != "piece" or self.received is None:
            return
        self.loses -= 1
        if self.takes and self.loses < 0 and message.piece.offset == self.received:
            self.received += len(message.piece.data)
        ack = pb.PieceAck(request_id=message.piece.request_id, received_bytes=self.received)
        self.stream._pieces[message.piece.request_id].set_result(ack)


def cost(cloud: Cloud) -> int:
    """Of all pieces that the cloud was sent."""
    return sum(len(message.piece.data) + PIECE_HEAD_BYTES for message in cloud.sent)


def stream(folder: Path, cloud: Cloud, answer: Any = None) -> Stream:
    given = settings(folder, ack_timeout_seconds=0.05)
    context = StreamContext(
        cast(Any, None), given, Metrics(), Window(1), asyncio.Event(), lambda size: None, Callbacks(answer=answer)
    )
    cloud.stream = made = Stream(cast(Call, cloud), context)
    made._idle.set()
    made._quiet.set()
    return made


@pytest.mark.parametrize("received", [0, 1, SIZE - 1])
async def test_a_cloud_that_never_has_the_file_gets_two_pieces(tmp_path: Path, received: int) -> None:
    cloud, file = Cloud(received), File(bytes(SIZE))
    with pytest.raises(Interrupted):
        await stream(tmp_path, cloud)._send_file(REQUEST, file)
    assert len(cloud.sent) == 2 and file.sent == cost(cloud)


async def test_a_cloud_that_has_lost_the_start_gets_no_more_than_the_file_has(tmp_path: Path) -> None:
    cloud, file = Cloud(takes=True), File(bytes(1500))
    sender = stream(tmp_path, cloud)
    with pytest.raises(Interrupted):
        cloud.loses = 1
        await sender._send_file(REQUEST, file)
    assert file.sent == cost(cloud) <= bytes_in_pieces(1500)


async def test_a_file_that_was_cut_off_continues_where_it_was(tmp_path: Path) -> None:
    cloud, file = Cloud(40_000, takes=True), File(bytes(SIZE), limit=SIZE - 38_000)
    await stream(tmp_path, cloud)._send_file(REQUEST, file)
    assert cloud.received == SIZE and file.sent == cost(cloud) == SIZE - 40_000 + LEAST_BYTES + 5 * PIECE_HEAD_BYTES


async def test_each_piece_is_charged_with_what_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud, file = Cloud(takes=True), File(bytes(SIZE))
    sender = stream(tmp_path, cloud)
    await sender._send_file(REQUEST, file)
    http2_and_grpc = 9 + 5
    wire = sum(message.ByteSize() + http2_and_grpc for message in cloud.sent)
    assert cloud.received == SIZE and SIZE < wire <= file.sent == cost(cloud) <= file.limit
    monkeypatch.setattr(sender._piece, "answered", lambda seconds: None)  # a slow link
    sender._piece.unanswered()
    cloud.received, cloud.sent, file = 0, [], File(bytes(SIZE))
    await sender._send_file(REQUEST, file)
    assert len(cloud.sent) == SIZE // LEAST_BYTES and file.sent == file.limit


async def test_a_file_for_which_the_hour_has_too_little_is_refused_after_one_piece(tmp_path: Path) -> None:
    cloud, file = Cloud(takes=True), File(bytes(SIZE), limit=SIZE - 2000)
    with pytest.raises(Refused) as refused:
        await stream(tmp_path, cloud)._send_file(REQUEST, file)
    assert refused.value.reason is RefusalReason.OVER_BUDGET and file.sent == LEAST_BYTES + PIECE_HEAD_BYTES


async def test_a_piece_without_an_answer_is_followed_by_small_ones(tmp_path: Path) -> None:
    cloud = Cloud(takes=True)
    sender = stream(tmp_path, cloud)
    assert sender._piece.bytes == LEAST_BYTES
    await sender._send_file(REQUEST, File(bytes(SIZE)))
    assert len(cloud.sent[-2].piece.data) > LEAST_BYTES
    cloud.received = None
    with pytest.raises(Interrupted):
        await sender._send_file(REQUEST, File(bytes(SIZE)))
    cloud.received, cloud.sent = 0, []
    await sender._send_file(REQUEST, File(bytes(SIZE)))
    assert len(cloud.sent[0].piece.data) == LEAST_BYTES
    assert stream(tmp_path, cloud)._piece.bytes == LEAST_BYTES, "and each stream begins with them"


async def test_a_refusal_has_no_more_bytes_than_are_charged_for_it_and_an_ignored_request_none(tmp_path: Path) -> None:
    async def refuse(ask: PictureRequest, send: Send | None) -> None:
        raise Refused(RefusalReason.OVER_BUDGET, "\u20ac" * 300)

    async def ignore(ask: PictureRequest, send: Send | None) -> None:
        raise Ignored("refused just now")

    cloud = Cloud()
    request = pb.Request(id=REQUEST, frame_id=bytes(16), kind=pb.REQUEST_KIND_REGION)
    await stream(tmp_path, cloud, refuse)._work(request)
    (sent,) = cloud.sent
    assert sent.refusal.reason == pb.REFUSAL_REASON_OVER_BUDGET and len(sent.refusal.detail) > 60
    http2_and_grpc = 9 + 5
    assert sent.ByteSize() + http2_and_grpc <= REQUEST_BYTES
    await stream(tmp_path, cloud, ignore)._work(request)
    assert len(cloud.sent) == 1


async def test_requests_that_wait_keep_those_of_other_kinds_and_sources_from_nothing(tmp_path: Path) -> None:
    """64 requests to a camera that is down; and no more than a bounded number in all, whatever a cloud names."""
    taken: list[PictureRequest] = []

    async def wait(ask: PictureRequest, send: Send | None) -> None:
        taken.append(ask)
        await asyncio.Event().wait()

    at_work = stream(tmp_path, Cloud(), wait)

    async def take(number: int, source: str, kind: pb.RequestKind = pb.REQUEST_KIND_NOW) -> bool:
        ident = bytes(6) + b"\x80" + bytes(1) + b"\x80" + number.to_bytes(7, "big")
        at_work._take(pb.Request(id=ident, frame_id=bytes(16), kind=kind, source_id=source))
        await asyncio.sleep(0)
        return bool(taken) and taken[-1].id.bytes == ident

    assert all([await take(number, "down") for number in range(64)])
    assert not await take(64, "down")
    assert await take(65, "up") and await take(66, "down", pb.REQUEST_KIND_BETTER)
    assert not await take(65, "up"), "it is being worked on"
    many = [await take(number, f"named-{number}") for number in range(100, 3000)]
    assert many.count(True) == 1024 - 66
    tasks = list(at_work._requests.values())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not at_work._requests and not at_work._in_progress
    assert await take(64, "down")


def test_pieces_follow_the_link() -> None:
    piece = PieceSize()
    sizes = []
    for seconds in [0.1] * 8 + [2.0] * 8:
        piece.answered(seconds)
        sizes.append(piece.bytes)
    assert max(sizes) == MOST_BYTES == 1 << 15 and sizes[-1] == LEAST_BYTES == 1 << 10
    piece.answered(1.0)
    assert piece.bytes == LEAST_BYTES
    piece.answered(0.1)
    piece.answered(0.1)
    piece.unanswered()
    assert piece.bytes == LEAST_BYTES
