"""The window follows the link: it is small where answers take long, so that an urgent frame is sent soon."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

from edge_encoder.uplink.window import LEAST, Window
from tests.support.edge.fakes import FakeCloud, serving
from tests.support.edge.spooled import new_record
from tests.support.edge.uplink import exactly, put_frames, shipping
from tests.support.waiting import until


def test_it_shrinks_with_slow_answers_and_grows_with_quick_ones() -> None:
    window = Window(8, slow_seconds=3.0, quick_seconds=1.0)
    for _ in range(20):
        window.answered(5.0)
    assert window.frames == LEAST
    window.answered(2.0)  # neither
    assert window.frames == LEAST
    for _ in range(20):
        window.answered(0.1)
    assert window.frames == 8
    one = Window(1)
    one.answered(60.0)
    assert one.frames == 1


async def test_an_urgent_frame_is_sent_soon_on_a_slow_link(tmp_path: Path) -> None:
    """The cloud takes 30 ms a frame and allows 64 in flight; two seconds of backlog would go first."""

    cloud = FakeCloud(window=64, seconds_a_frame=0.03)
    async with serving(cloud) as address, shipping(tmp_path, address) as (spool, uplink):
        window = Window(64, slow_seconds=0.4, quick_seconds=0.2)
        uplink._context = dataclasses.replace(uplink._context, window=window)
        records = await put_frames(spool, 140)
        await until(lambda: len(cloud.order) >= 90)
        urgent, before = new_record(7, priority=9), len(cloud.order)
        await asyncio.wrap_future(spool.put(urgent))
        await until(lambda: urgent.id in cloud.frames)
        assert cloud.order.index(urgent.id) - before < 30
        await until(lambda: spool.pending_frames == 0)
        assert exactly(cloud, [*records, urgent])
