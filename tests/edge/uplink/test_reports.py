"""The edge reports how it is, seldom, and only to a cloud that reads it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from aeic.v1 import ingest_pb2 as pb
from edge_encoder.errors import SpoolError
from edge_encoder.metrics import Metrics
from edge_encoder.uplink import stream
from edge_encoder.uplink.stream import Call, Callbacks, Report, Stream, StreamContext
from edge_encoder.uplink.window import Window
from tests.support.edge.fakes import settings


class Cloud:
    """gRPC's call; what was written on it."""

    def __init__(self, *, takes_reports: bool) -> None:
        self.welcome = pb.Welcome(window=1, takes_reports=takes_reports)
        self.sent: list[pb.DeliverRequest] = []

    async def write(self, message: pb.DeliverRequest) -> None:
        self.sent.append(message)

    async def read(self) -> pb.DeliverResponse:
        return pb.DeliverResponse(welcome=self.welcome)


class Box:
    """Reports one after the other, then the last one again and again."""

    def __init__(self, *reports: Report | SpoolError) -> None:
        self.reports, self.asked = list(reports), 0

    async def report(self) -> Report:
        self.asked += 1
        found = self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]
        if isinstance(found, SpoolError):
            raise found
        return found


async def told(folder: Path, cloud: Cloud, box: Box, *, looks: int, in_flight: int = 0) -> list[pb.Report]:
    """What the stream reports while it looks so many times at the box."""
    context = StreamContext(
        cast(Any, None),
        settings(folder),
        Metrics(),
        Window(1),
        asyncio.Event(),
        lambda size: None,
        Callbacks(report=box.report),
    )
    made = Stream(cast(Call, cloud), context)
    await made.greet(pb.Hello(source_id="mast-7"))
    made._in_flight = cast(Any, range(in_flight))
    telling = asyncio.ensure_future(made._send_reports())
    while box.asked < looks and not telling.done():
        await asyncio.sleep(0)
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
    return [message.report for message in cloud.sent if message.WhichOneof("message") == "report"]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "REPORT_SECONDS", 0.0)


async def test_it_reports_at_once_and_then_what_changes(tmp_path: Path) -> None:
    ill = Report(problem="gate cannot be read")
    box = Box(Report(), Report(), Report(12, 30), Report(12, 90), ill, ill, ill, Report())
    reports = await told(tmp_path, Cloud(takes_reports=True), box, looks=50)
    assert [(one.waiting_frames, one.oldest_seconds, one.problem) for one in reports] == [
        (0, 0, ""),
        (12, 30, ""),
        (12, 90, ""),
        (0, 0, "gate cannot be read"),
        (0, 0, ""),
    ]


async def test_a_box_that_does_not_change_reports_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "REPORT_AGAIN_SECONDS", 0.0)
    assert len(await told(tmp_path, Cloud(takes_reports=True), Box(Report()), looks=5)) >= 4


async def test_frames_on_their_way_do_not_wait(tmp_path: Path) -> None:
    reports = await told(tmp_path, Cloud(takes_reports=True), Box(Report(3, 7), Report(5, 7)), looks=9, in_flight=3)
    assert [(one.waiting_frames, one.oldest_seconds) for one in reports] == [(0, 0), (2, 7)]


async def test_an_earlier_cloud_gets_no_report(tmp_path: Path) -> None:
    box = Box(Report(9))
    assert await told(tmp_path, Cloud(takes_reports=False), box, looks=5) == [] and box.asked == 0


async def test_a_spool_that_cannot_be_read_is_the_report(tmp_path: Path) -> None:
    reports = await told(tmp_path, Cloud(takes_reports=True), Box(SpoolError("é" * 300)), looks=3)
    assert len(reports) == 1 and set(reports[0].problem) == {"é"} and reports[0].ByteSize() < 200
