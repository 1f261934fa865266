"""The uplink against a cloud that cuts, stalls, refuses and disappears: every frame arrives once, bit for bit."""

from __future__ import annotations

import asyncio
import random
import uuid
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from edge_encoder.errors import SpoolError
from edge_encoder.spool.record import State
from edge_encoder.uplink import stream
from tests.support.edge.fakes import FakeCloud, Proxy, serving
from tests.support.edge.in_process import edge
from tests.support.edge.spooled import new_record, state_of
from tests.support.edge.uplink import DIGEST, exactly, put_frames, shipping
from tests.support.waiting import until


async def test_frames_arrive_in_order_with_one_hello(tmp_path: Path) -> None:
    cloud = FakeCloud(window=8, token="s3cret", digest=DIGEST)
    async with serving(cloud) as address, shipping(tmp_path, address, token="s3cret") as (spool, uplink):
        records = await put_frames(spool, 100)
        await until(lambda: spool.pending_frames == 0)
        assert exactly(cloud, records) and cloud.order == [r.id for r in records]
        (hello,) = cloud.hellos
        assert (hello.source_id, hello.bundle_digest, hello.token) == ("mast-7", DIGEST, "s3cret")
        assert uplink.status.state == "connected" and uplink.status.last_ack is not None
        assert state_of(spool, records[0].id) is State.DELIVERED


async def test_a_delivery_that_could_not_be_recorded_is_sent_again_without_another_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender waits without a deadline by the time that the disk's failure is known."""
    monkeypatch.setattr(stream, "RECORD_AGAIN_SECONDS", 0.1)
    cloud = FakeCloud(digest=DIGEST)
    async with serving(cloud) as address, shipping(tmp_path, address) as (spool, _):
        finish = spool.finish
        failed: list[Future[bool]] = []

        def fails_once(ident: uuid.UUID, state: State, reason: str = "") -> Future[bool]:
            if failed:
                return finish(ident, state, reason)
            failed.append(Future())
            return failed[0]

        monkeypatch.setattr(spool, "finish", fails_once)
        await put_frames(spool, 1)
        await until(lambda: bool(failed))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(failed[0].set_exception, SpoolError("the test's disk failed"))
        await until(lambda: spool.pending_frames == 0)


async def test_window_of_the_cloud_is_kept(tmp_path: Path) -> None:
    cloud = FakeCloud(window=5, silent=True)
    async with serving(cloud) as address, shipping(tmp_path, address) as (spool, _):
        records = await put_frames(spool, 20)
        await until(lambda: cloud.received == 5)
        await asyncio.sleep(0.1)
        assert cloud.received == 5
        assert sum(state_of(spool, r.id) is State.SENDING for r in records) == 5


async def test_broken_streams_lose_nothing(tmp_path: Path) -> None:
    cloud = FakeCloud(break_after=[0, 3, 1, 7, 2])
    async with serving(cloud) as address, shipping(tmp_path, address) as (spool, _):
        records = await put_frames(spool, 60)
        await until(lambda: spool.pending_frames == 0)
        assert exactly(cloud, records)
        assert len(cloud.hellos) == 6


async def test_cut_connections_lose_nothing(tmp_path: Path) -> None:
    cloud = FakeCloud()
    async with (
        serving(cloud) as address,
        Proxy(address) as proxy,
        shipping(tmp_path, proxy.address, backoff_max_seconds=0.05) as (spool, _),
    ):
        records = []
        for _ in range(8):
            records += await put_frames(spool, 40)
            await asyncio.sleep(random.uniform(0, 0.05))
            proxy.cut()
        await until(lambda: spool.pending_frames == 0)
        assert exactly(cloud, records)


async def test_half_open_connection_is_noticed_by_the_missing_ack(tmp_path: Path) -> None:
    cloud = FakeCloud()
    async with (
        serving(cloud) as address,
        Proxy(address) as proxy,
        shipping(tmp_path, proxy.address, ack_timeout_seconds=0.4) as (spool, uplink),
    ):
        records = await put_frames(spool, 3)
        await until(lambda: spool.pending_frames == 0)
        proxy.stalled = True
        records += await put_frames(spool, 10)
        await until(lambda: uplink.status.state == "stalled")
        assert "no " in uplink.status.detail
        proxy.stalled = False
        await until(lambda: spool.pending_frames == 0)
        assert exactly(cloud, records)


async def test_a_cloud_that_sends_no_welcome_is_disconnected(tmp_path: Path) -> None:
    cloud = FakeCloud(welcomes=False)
    async with serving(cloud) as address, shipping(tmp_path, address, ack_timeout_seconds=0.2) as (spool, _):
        records = await put_frames(spool, 2)
        await until(lambda: len(cloud.hellos) >= 2)
        cloud.welcomes = True
        await until(lambda: exactly(cloud, records))


async def test_cloud_that_is_down_and_comes_back(tmp_path: Path) -> None:
    cloud = FakeCloud()
    async with serving(cloud) as address:
        pass
    async with shipping(tmp_path, address) as (spool, uplink):
        records = await put_frames(spool, 5)
        await until(lambda: uplink.status.failures_in_a_row >= 3)
        assert uplink.status.state == "unreachable" and spool.pending_frames == 5
        assert state_of(spool, records[0].id) is State.SPOOLED
        async with serving(cloud, address):
            await until(lambda: spool.pending_frames == 0)
        assert exactly(cloud, records)


async def test_an_edge_without_a_cloud_is_not_shown_as_disconnected(tiny_bundle: Path, tmp_path: Path) -> None:
    for address, shown in (("", 0), ("127.0.0.1:1", 1)):
        async with edge(tmp_path / f"edge{shown}", tiny_bundle, cloud_address=address) as (client, _):
            assert (await client.get("/metrics")).text.count("\naeic_edge_uplink_connected 0.0\n") == shown


@pytest.mark.parametrize(
    ("trouble", "state"),
    [({"digest": b"x" * 32}, "model-mismatch"), ({"token": "other"}, "unauthorised")],
)
async def test_a_refusal_is_logged_once_and_the_frames_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: dict[str, Any], state: str
) -> None:
    cloud = FakeCloud(**trouble)
    async with serving(cloud) as address, shipping(tmp_path, address, token="s3cret") as (spool, uplink):
        records = await put_frames(spool, 3)
        await until(lambda: len(cloud.hellos) >= 3)
        assert uplink.status.state == state
        assert spool.pending_frames == 3 and cloud.received == 0
        cloud.digest, cloud.token = b"", ""
        await until(lambda: exactly(cloud, records))
    logged = [r for r in caplog.records if state in r.getMessage()]
    assert len(logged) == 1
    assert "s3cret" not in caplog.text


async def test_rejected_frame_is_final_and_its_neighbours_go(tmp_path: Path) -> None:
    cloud = FakeCloud()
    async with serving(cloud) as address, shipping(tmp_path, "127.0.0.1:1") as (spool, _):
        bad, *good = await put_frames(spool, 5)
    cloud.reject = {bad.id}
    async with serving(cloud) as address, shipping(tmp_path, address) as (spool, _):
        await until(lambda: spool.pending_frames == 0)
        entry = spool.get(bad.id)
        assert entry is not None and entry.state is State.REJECTED and entry.reason == "damaged frame"
        assert exactly(cloud, good) and cloud.received == 5


async def test_a_frame_that_breaks_every_stream_lets_the_others_pass(tmp_path: Path) -> None:
    cloud = FakeCloud()
    async with shipping(tmp_path, "127.0.0.1:1") as (spool, _):
        poison, *good = await put_frames(spool, 20)
    cloud.break_on = {poison.id}
    async with serving(cloud) as address, shipping(tmp_path, address) as (spool, _):
        await until(lambda: exactly(cloud, good))
        assert state_of(spool, poison.id) in (State.SPOOLED, State.SENDING)
        cloud.break_on.clear()
        await until(lambda: spool.pending_frames == 0)


async def test_lost_acks_make_duplicates_that_change_nothing(tmp_path: Path) -> None:
    cloud = FakeCloud()
    async with serving(cloud) as address:
        async with shipping(tmp_path, address) as (spool, _):
            records = await put_frames(spool, 10)
            await until(lambda: spool.pending_frames == 0)
        # As if the acks had never been written: a new spool with the same frames.
        async with shipping(tmp_path / "again", address) as (spool, uplink):
            await asyncio.gather(*(asyncio.wrap_future(spool.put(record)) for record in records[:5]))
            await until(lambda: spool.pending_frames == 0)
            assert uplink._metrics.acks.labels("duplicate")._value.get() == 5
        assert exactly(cloud, records)


async def test_an_urgent_frame_overtakes_a_backlog(tmp_path: Path) -> None:
    """At most the window's frames and one lease (8) go before it."""

    cloud = FakeCloud(window=4, seconds_a_frame=0.005)
    async with serving(cloud) as address, shipping(tmp_path, address) as (spool, _):
        records = await put_frames(spool, 120)
        await until(lambda: len(cloud.order) >= 10)
        urgent = new_record(7, priority=9)
        await asyncio.wrap_future(spool.put(urgent))
        before = len(cloud.order)
        await until(lambda: urgent.id in cloud.frames)
        assert cloud.order.index(urgent.id) - before <= 4 + 8
        await until(lambda: spool.pending_frames == 0)
        assert exactly(cloud, [*records, urgent])
