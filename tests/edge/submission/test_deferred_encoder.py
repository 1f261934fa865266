"""wait=received in process: answered at once, encoded later, failed with a reason; caps, crashes and a full spool."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from aeic.identifiers import new_id
from edge_encoder import service as edge_service
from edge_encoder.service import EdgeService
from edge_encoder.spool.record import ReceivedPicture, State
from edge_encoder.spool.spool import Spool
from edge_encoder.submission import deferred_encoder
from edge_encoder.submission.deferred_encoder import TRIES
from tests.support.edge import crashing_reader
from tests.support.edge.fakes import FakeCloud, serving
from tests.support.edge.in_process import edge, is_problem
from tests.support.edge.spooled import new_received, new_record
from tests.support.pictures import BAD, GOOD, picture
from tests.support.waiting import until

POST = "/v1/frames?wait=received"


@contextlib.contextmanager
def held(service: EdgeService) -> Iterator[list[bytes]]:
    """Hold every encoding back while the context lasts; yields the pictures given to the encoder, in order."""
    encode, go = service.encoder.encode, threading.Event()
    order: list[bytes] = []

    def slow(*args: Any, **kw: Any) -> Any:
        order.append(args[0])
        go.wait(20)
        return encode(*args, **kw)

    service.encoder.encode = slow  # type: ignore[method-assign]  # the service ends with the test
    try:
        yield order
    finally:
        go.set()


async def encoded(client: httpx.AsyncClient, ident: object) -> dict[str, Any]:
    """What is shown of the received picture once it is one no more."""
    deadline = time.monotonic() + 10
    while (shown := (await client.get(f"/v1/frames/{ident}")).json())["state"] == "received":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    return shown


async def test_it_is_received_at_once_and_delivered_later_as_if_posted_the_other_way(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    cloud = FakeCloud()
    async with serving(cloud) as address, edge(tmp_path, tiny_bundle, cloud_address=address) as (client, service):
        twin = (await client.post("/v1/frames?rate=r1", content=picture(100, 70))).json()
        with held(service):
            headers = {"X-Source-Id": "camera-2", "X-Captured-At": "1700000000000"}
            response = await client.post(f"{POST}&rate=r1&priority=3", content=picture(100, 70), headers=headers)
            body = response.json()
            assert response.status_code == 202 and body["state"] == "received"
            assert (body["width"], body["height"], body["priority"]) == (100, 70, 3)
            assert body["bytes"] is body["bpp"] is body["rate"] is None
            shown = (await client.get(response.headers["location"])).json()
            assert shown["state"] == "received" and shown["bytes"] is None
            received = (await client.get("/v1/status")).json()["received"]
            assert (received["frames"], received["max_frames"]) == (1, 100) and received["bytes"] > 1000
            assert "aeic_edge_received_frames 1.0" in (await client.get("/metrics")).text
        ident = uuid.UUID(body["id"])
        await service.waiting.settled(ident, 10)
        shown = (await client.get(f"/v1/frames/{ident}")).json()
        assert (shown["state"], shown["bytes"], shown["rate"]) == ("delivered", twin["bytes"], 0)
        assert shown["created_unix_ms"] == body["created_unix_ms"] and shown["created_at"] == body["created_at"]
        assert cloud.frames[ident] == cloud.frames[uuid.UUID(twin["id"])]
        text = (await client.get("/metrics")).text
        for wait in ("received", "spooled"):
            assert f'aeic_edge_request_seconds_count{{status="202",wait="{wait}"}} 1.0' in text
        for stage in ("receive", "wait"):
            assert f'aeic_edge_stage_seconds_count{{stage="{stage}"}} 1.0' in text


async def test_every_picture_is_taken_or_refused_by_its_head_or_fails_with_the_reason(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    failed = 0
    async with edge(tmp_path, tiny_bundle) as (client, service):
        for name, content in GOOD.items():
            body = (await client.post(POST, content=content)).json()
            shown = await encoded(client, body["id"])
            assert shown["state"] == "spooled" and shown["bytes"], name
            assert (shown["width"], shown["height"]) == (body["width"], body["height"]), name
        for name, (content, status, word) in BAD.items():
            response = await client.post(POST, content=content)
            if response.status_code != 202:
                is_problem(response, status, word)
                continue
            assert "truncated" in name or "bomb" in name
            failed += 1
            shown = await encoded(client, response.json()["id"])
            assert shown["state"] == "failed" and word in shown["reason"] and shown["bytes"] is None
        is_problem(await client.post(f"{POST}&rate=r9", content=picture()), 400, "r1")
        small = (await client.post(f"{POST}&max_bytes=10", content=picture())).json()
        assert "max_bytes" in (await encoded(client, small["id"]))["reason"]
        assert f"aeic_edge_failed_total {failed + 1}.0" in (await client.get("/metrics")).text and failed == 3
        assert service.spool.received_pictures == 0 and service.queue.pending == 0 and service.uploads.held == 0


async def test_one_key_is_one_frame_in_every_state(tmp_path: Path, tiny_bundle: Path) -> None:
    key = str(uuid.uuid4())

    async with edge(tmp_path, tiny_bundle) as (client, service):

        async def post(url: str, seed: int = 0) -> httpx.Response:
            return await client.post(url, content=picture(seed=seed), headers={"Idempotency-Key": key})

        with held(service):
            answers = await asyncio.gather(*(post(POST) for _ in range(5)))
            assert {a.status_code for a in answers} == {202} and service.spool.received_pictures == 1
            for url in (POST, "/v1/frames"):
                body = (await post(url)).json()
                assert (body["id"], body["state"], body["duplicate"]) == (key, "received", True)
                is_problem(await post(url, seed=1), 409, "fresh id")
        await encoded(client, key)
        body = (await post(POST)).json()
        assert (body["state"], body["duplicate"]) == ("spooled", True) and body["bytes"]
        assert service.spool.pending_frames == 1


async def test_beyond_the_caps_429_and_urgent_ones_go_first(tmp_path: Path, tiny_bundle: Path) -> None:
    caps = {"received_max_frames": 6, "received_max_bytes": 60_000, "encode_workers": 1, "encode_queue_frames": 1}
    async with edge(tmp_path, tiny_bundle, **caps) as (client, service):
        with held(service) as order:
            for _ in range(2):  # one in the encoder and one behind it
                await client.post(POST, content=picture())
            await until(lambda: service.queue.pending == 2)
            kinds = [picture(seed=n) for n in (1, 2, 3)]
            for content, priority in zip(kinds, (0, 200, 7), strict=True):
                assert (await client.post(f"{POST}&priority={priority}", content=content)).status_code == 202
            large = picture(600, 600, form="PNG", seed=5)
            refused = await client.post(POST, content=large)
            is_problem(refused, 429, "AEIC_EDGE_RECEIVED_MAX_BYTES")
            assert (await client.post(POST, content=picture())).status_code == 202
            answers = await asyncio.gather(*(client.post(POST, content=picture()) for _ in range(20)))
            is_problem(answers[0], 429, "AEIC_EDGE_RECEIVED_MAX_FRAMES", "try again")
            assert {a.status_code for a in answers} == {429} and int(answers[0].headers["retry-after"]) >= 1
            other = asyncio.create_task(client.post("/v1/frames", content=picture(seed=9)))  # has places of its own
            await until(lambda: service.queue.pending == 3)
        assert (await other).json()["state"] == "spooled"
        await until(lambda: service.spool.received_pictures == 0)
        assert [kinds.index(data) for data in order if data in kinds] == [1, 2, 0]
        assert (await client.post(POST, content=large)).status_code == 202  # alone it has its place


async def test_originals_are_encoded_after_a_restart_and_one_that_kills_the_edge_is_given_up(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    killer, content = new_received(1), picture()
    good = ReceivedPicture(new_id(), content, zlib.crc32(content), 96, 64)

    spool = Spool(tmp_path)
    for each in (killer, good):
        spool.receive(each).result(5)
    for _ in range(TRIES):
        assert spool.next_received() is not None
        spool.close()  # as after a kill: begun and not done
        spool = Spool(tmp_path)
    spool.close()
    async with edge(tmp_path, tiny_bundle) as (client, _):
        shown = await encoded(client, killer.id)
        assert shown["state"] == "failed" and f"{TRIES} times" in shown["reason"]
        assert (await encoded(client, good.id))["state"] == "spooled"


async def test_stops_in_the_middle_of_an_encoding_are_no_attempts(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_service, "_ENCODING_GRACE_SECONDS", 0.01)
    spool, content = Spool(tmp_path), picture()
    received = ReceivedPicture(new_id(), content, zlib.crc32(content), 96, 64)
    spool.receive(received).result(5)
    spool.close()
    for _ in range(TRIES + 1):
        with contextlib.ExitStack() as stack:
            async with edge(tmp_path, tiny_bundle) as (_, service):
                order = stack.enter_context(held(service))
                while not order and service.spool.received_pictures:
                    await asyncio.sleep(0.01)
    async with edge(tmp_path, tiny_bundle) as (client, _):
        assert (await encoded(client, received.id))["state"] == "spooled"


async def test_an_encoding_that_fails_is_tried_again_later(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with edge(tmp_path, tiny_bundle) as (client, service):
        encode, tries = service.encoder.encode, []

        def broken(*args: Any, **kw: Any) -> Any:
            tries.append(1)
            if len(tries) < 2:
                raise MemoryError
            return encode(*args, **kw)

        monkeypatch.setattr(service.encoder, "encode", broken)
        body = (await client.post(POST, content=picture())).json()
        assert (await encoded(client, body["id"]))["state"] == "spooled" and len(tries) == 2


async def test_a_fault_of_the_machine_is_no_attempt_and_is_shown(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred_encoder, "_PAUSE_SECONDS", 0.001)
    faults = [MemoryError("std::bad_alloc"), OSError(24, "Too many open files"), Exception("Failed to allocate memory")]
    async with edge(tmp_path, tiny_bundle) as (client, service):
        encode, tries, go = service.encoder.encode, 0, threading.Event()

        def broken(*args: Any, **kw: Any) -> Any:
            nonlocal tries
            tries += 1
            if tries <= 2 * TRIES:
                raise faults[tries % len(faults)]
            go.wait(20)
            return encode(*args, **kw)

        monkeypatch.setattr(service.encoder, "encode", broken)
        body = (await client.post(POST, content=picture())).json()
        await until(lambda: tries == 2 * TRIES + 1)
        assert "received pictures wait" in (await client.get("/v1/status")).json()["received"]["problem"]
        is_problem(await client.get("/readyz"), 503, "received pictures wait")
        go.set()
        assert (await encoded(client, body["id"]))["state"] == "spooled"
        assert (await client.get("/readyz")).status_code == 200


async def test_a_fault_of_the_picture_is_an_attempt(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred_encoder, "_PAUSE_SECONDS", 0.001)
    async with edge(tmp_path, tiny_bundle) as (client, service):

        def broken(*_: Any, **kw: Any) -> Any:
            raise OSError("image file is truncated")  # Pillow's, without an errno

        monkeypatch.setattr(service.encoder, "encode", broken)
        body = (await client.post(POST, content=picture())).json()
        assert (await encoded(client, body["id"]))["state"] == "failed"


async def test_while_the_spool_is_full_the_frame_waits(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle, spool_max_bytes=65536) as (client, service):
        filler = new_record(size=65536 - 400)
        await asyncio.wrap_future(service.spool.put(filler))
        body = (await client.post(POST, content=picture())).json()
        await asyncio.sleep(0.5)
        assert (await client.get(f"/v1/frames/{body['id']}")).json()["state"] == "received"
        await asyncio.wrap_future(service.spool.finish(filler.id, State.DELIVERED))
        assert (await encoded(client, body["id"]))["state"] == "spooled"


async def test_the_operator_sets_the_default_and_sigterm_keeps_what_waits(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle, default_wait="received", encode_workers=1) as (client, service):
        with held(service):
            for seed in range(4):
                body = (await client.post("/v1/frames", content=picture(seed=seed))).json()
                assert body["state"] == "received"
            await until(lambda: service.queue.pending == 2)
            stopping = asyncio.create_task(service.deferred_encoder.stop())
            await asyncio.sleep(0.05)
        await stopping
        assert (service.spool.received_pictures, service.spool.pending_frames) == (2, 2)
    async with edge(tmp_path, tiny_bundle) as (_, service):
        await until(lambda: service.spool.received_pictures == 0)
        assert service.spool.pending_frames == 4


async def test_an_original_that_crashes_its_reader_fails_and_does_not_come_again(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    poisoned = picture(form="PNG") + b"." + crashing_reader.CRASH
    async with edge(tmp_path, tiny_bundle) as (client, service):
        service.reader.command = crashing_reader.command(tmp_path)
        is_problem(await client.post("/v1/frames", content=poisoned), 422, "crashed", "ordinary JPEG")
        ident = (await client.post(POST, content=poisoned)).json()["id"]
        other = (await client.post(POST, content=picture(form="PNG", seed=1))).json()["id"]
        shown = await encoded(client, ident)
        assert shown["state"] == "failed" and "crashed" in shown["reason"]
        assert (await encoded(client, other))["state"] == "spooled"
        assert (await client.get("/readyz")).status_code == 200
        assert 'aeic_edge_picture_process_losses_total{reason="crash"} 2.0' in (await client.get("/metrics")).text
    async with edge(tmp_path, tiny_bundle) as (client, service):
        assert (await client.get(f"/v1/frames/{ident}")).json()["state"] == "failed"
        assert service.spool.received_pictures == 0


async def test_pictures_are_received_while_others_are_read_for_long(tmp_path: Path, tiny_bundle: Path) -> None:
    slow = picture(form="PNG") + b"." + crashing_reader.WAIT
    async with edge(tmp_path, tiny_bundle, encode_workers=1) as (client, service):
        service.reader.command = crashing_reader.command(tmp_path)
        idents = [(await client.post(POST, content=slow)).json()["id"] for _ in range(3)]
        # An original that is kept, or that an answer is made of, is read beside those that are encoded.
        originals = [asyncio.create_task(asyncio.to_thread(service.reader.load, slow, max_pixels=8192)) for _ in "12"]
        await until(lambda: len(service.reader.pids) == 2)
        try:
            for form in ("JPEG", "PNG", "WEBP", "AVIF"):
                answer = await client.post(POST, content=picture(form=form, seed=1))
                assert answer.status_code == 202 and not originals[0].done() and not originals[1].done(), form
            assert {(await client.get(f"/v1/frames/{one}")).json()["state"] for one in idents} == {"received"}
        finally:
            (tmp_path / "go").touch()
        await asyncio.gather(*originals)
        assert [(await encoded(client, one))["state"] for one in idents] == ["spooled"] * 3


async def test_an_original_waits_while_no_process_can_be_started_to_read_it(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred_encoder, "_PAUSE_SECONDS", 0.05)
    async with edge(tmp_path, tiny_bundle) as (client, service):
        command, service.reader.command = service.reader.command, ("/nowhere/python",)
        is_problem(await client.post("/v1/frames", content=picture(form="PNG")), 503, "AEIC_EDGE_PICTURE_PROCESS")
        ident = (await client.post(POST, content=picture(form="PNG"))).json()["id"]
        await until(lambda: service.deferred_encoder.problem)
        service.reader.command = command
        assert (await encoded(client, ident))["state"] == "spooled"


async def test_a_stop_ends_a_reader_that_hangs_and_the_original_stays(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_service, "_ENCODING_GRACE_SECONDS", 0.2)
    async with edge(tmp_path, tiny_bundle, encode_workers=2) as (client, service):
        service.reader.command = crashing_reader.command(tmp_path)
        hanging = picture(form="PNG") + b"." + crashing_reader.HANG
        await client.post(POST, content=hanging)
        post = asyncio.create_task(client.post("/v1/frames", content=hanging))
        await until(lambda: len(service.reader.pids) == 2)
        post.cancel()  # its client has hung up
        pids = service.reader.pids
    await until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert service.reader.pids == set()
    with contextlib.closing(Spool(tmp_path)) as spool:
        assert spool.received_pictures == 1
