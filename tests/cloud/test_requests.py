"""Requests for more of a picture, in the cloud: the API, the stream to a box, budgets, tenants and retention."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import grpc
import httpx
import pytest
from PIL import Image

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from aeic_client.messages import BUDGET_SPENT
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.grpc_api import originals
from cloud_decoder.http_api import image_service, schemas
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.service import Cloud
from cloud_decoder.store.requests import HOUR_MS, LEAST_CHARGE_BYTES, MOST_OPEN, new_request_id
from cloud_decoder.store.store import (
    Added,
    FrameState,
    NewRequest,
    RefusalReason,
    RequestKind,
    RequestState,
    Store,
    StoredRequest,
)
from tests.support.cloud import IngestClient, running_cloud
from tests.support.frames import NOW, MakeFrame, new_frame, stored_frame
from tests.support.waiting import until

NOW_MS = int(NOW * 1000)
REGION = {"kind": "region", "region": {"x": 10, "y": 20, "width": 64, "height": 64}}


class Box(IngestClient):
    """A box that takes requests of up to ``request_max_bytes``, and sends originals of up to 50,000."""

    async def greet(self, bundle: Bundle, token: str = "", request_max_bytes: int = 4096, source: str = "box") -> None:
        hello = pb.Hello(
            source_id=source, bundle_digest=bundle.digest, token=token, request_max_bytes=request_max_bytes, window=8
        )
        hello.original_max_bytes = 50_000
        await self.raw(pb.DeliverRequest(hello=hello))
        self.welcome = (await self._read()).welcome
        assert self.welcome.sends_requests

    async def piece(self, id: bytes, file: bytes, offset: int = 0, count: int = 1 << 16, **changed: Any) -> pb.PieceAck:
        """Send a part of ``file``; the answer."""
        await self.raw(pb.DeliverRequest(piece=piece_of(id, file, offset, count, **changed)))
        while True:
            message = await self._read()
            if message.WhichOneof("message") == "piece":
                return message.piece

    async def request(self) -> pb.Request:
        """The next request; answers to frames are passed over."""
        while True:
            message = await self._read()
            if message.WhichOneof("message") == "request":
                return message.request

    async def nothing(self, seconds: float = 1.5) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.request()

    async def refuse(self, id: bytes, reason: Any) -> None:
        await self.raw(pb.DeliverRequest(refusal=pb.Refusal(request_id=id, reason=reason, detail="because\n")))


def piece_of(id: bytes, file: bytes, offset: int = 0, count: int = 1 << 16, **changed: Any) -> pb.Piece:
    values: dict[str, Any] = {
        "request_id": id,
        "total_bytes": len(file),
        "sha256": hashlib.sha256(file).digest(),
        "offset": offset,
        "data": file[offset : offset + count],
    }
    return pb.Piece(**values | changed)


@asynccontextmanager
async def asked(
    decoder: Decoder, make_frame: MakeFrame, folder: Path, **settings: Any
) -> AsyncIterator[tuple[Cloud, httpx.AsyncClient, UUID]]:
    """A cloud with a frame of the source ``box/door``, which ``box`` has delivered, from an original of 640x480."""
    async with running_cloud(decoder, folder, **settings) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        sizes: dict[str, Any] = {"original_width": 640, "original_height": 480}
        new = new_frame(make_frame(1, 64, 64), source="box/door", box="box", **sizes)
        cloud.store.frames.add([new], time.time())
        yield cloud, http, new.id


async def ended(http: httpx.AsyncClient, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    state = await http.get(answer.headers["location"], params={"wait": 20})
    schemas.RequestBody.model_validate_json(state.content)
    return cast(dict[str, Any], state.json())


async def test_an_answer_is_a_frame_linked_to_its_parent(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aeic.cloud.audit")
    async with asked(decoder, make_frame, tmp_path) as (cloud, http, parent), Box(cloud.grpc) as box:
        await box.greet(bundle)
        posted = await http.post(f"/v1/frames/{parent}/requests", json=REGION | {"max_bytes": 900})
        assert posted.json()["state"] == "open" and posted.json()["bytes"] == 900
        request = await box.request()
        assert (UUID(bytes=request.frame_id), request.kind, request.max_bytes) == (parent, pb.REQUEST_KIND_REGION, 900)
        assert (request.x, request.y, request.width, request.height) == (10, 20, 64, 64)
        assert 50_000 < request.expires_in_ms <= 60_000
        data = make_frame(2, 64, 64)
        async with http.stream("GET", "/v1/events") as events:
            lines = events.aiter_lines()
            await anext(lines)
            await box.send(data, UUID(bytes=request.id), source_id="box/door")
            state = await ended(http, posted)
            async for line in lines:
                if line == "event: request":
                    event = json.loads((await anext(lines)).removeprefix("data: "))
                    assert event["request"]["state"] == "answered"
                    break
        answer = UUID(bytes=request.id)
        assert (state["state"], state["answer"], state["bytes"]) == ("answered", str(answer), len(data))
        frame = (await http.get(f"/v1/frames/{answer}")).json()
        assert (frame["parent"], frame["kind"], frame["region"]) == (str(parent), "region", REGION["region"])
        listed = (await http.get("/v1/frames", params={"parent": str(parent)})).json()["frames"]
        assert [one["id"] for one in listed] == [str(answer)]
        of_frame = (await http.get(f"/v1/frames/{parent}/requests")).json()
        schemas.RequestListBody.model_validate(of_frame)
        assert of_frame["max_bytes"] == 4096 and of_frame["hour_bytes_left"] == 65536 - max(
            len(data), LEAST_CHARGE_BYTES
        )
        await box.send(data, answer, source_id="box/door")  # after a broken stream
        assert (await ended(http, posted)) == state
        composed = await http.get(f"/v1/frames/{parent}/composed", params={"wait": 20, "format": "webp"})
        assert composed.status_code == 200 and composed.headers["x-composed-from"] == str(answer)
        with Image.open(io.BytesIO(composed.content)) as image:
            assert image.size == (640, 480) and str(answer) in image.getexif()[0x010E]
        assert (await http.get(f"/v1/frames/{answer}/composed")).status_code == 404
        again = await http.post(f"/v1/frames/{answer}/requests", json={"kind": "better"})
        assert again.status_code == 400 and str(parent) in again.json()["detail"]
    said = [record.getMessage() for record in caplog.records if record.name == "aeic.cloud.audit"]
    assert len(said) == 2 and str(answer) in said[0] and "answered" in said[1]


async def test_a_box_gets_its_open_requests_whenever_it_connects_and_may_refuse_once(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with asked(decoder, make_frame, tmp_path) as (cloud, http, parent):
        posted = await http.post(f"/v1/frames/{parent}/requests", json={"kind": "better"})
        for _ in range(2):
            async with Box(cloud.grpc) as box:
                await box.greet(bundle)
                request = await box.request()
                await box.nothing()  # once on a stream
        async with Box(cloud.grpc) as other, Box(cloud.grpc) as box:
            await other.greet(bundle, source="other")
            await other.refuse(request.id, pb.REFUSAL_REASON_GONE)  # it is not that box's request
            await other.nothing()
            assert (await http.get(posted.headers["location"])).json()["state"] == "open"
            await box.greet(bundle)
            await box.request()
            await box.refuse(request.id, pb.REFUSAL_REASON_GONE)
            state = await ended(http, posted)
            assert (state["state"], state["reason"], state["detail"]) == ("refused", "gone", "because ")
            await box.refuse(request.id, pb.REFUSAL_REASON_FORBIDDEN)
            await box.refuse(b"short", pb.REFUSAL_REASON_FORBIDDEN)
            await box.send(make_frame(2, 64, 64), UUID(bytes=request.id), source_id="box/door")
            assert (await box._read()).WhichOneof("message") in ("stored", "ack")
            assert await ended(http, posted) == state  # it ends once; the late frame is linked all the same
            frame = (await http.get(f"/v1/frames/{UUID(bytes=request.id)}")).json()
            assert frame["parent"] == str(parent)


async def test_a_box_of_an_earlier_release_is_sent_nothing_and_the_caller_learns_why(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with asked(decoder, make_frame, tmp_path) as (cloud, http, parent), IngestClient(cloud.grpc) as old:
        await old.hello(bundle, "box")
        state = await ended(http, await http.post(f"/v1/frames/{parent}/requests", json={"kind": "better"}))
        assert (state["reason"], state["state"]) == ("unsupported", "refused") and "earlier release" in state["detail"]
        await old.send(make_frame(3), uuid4())
        assert (await old.ack()).status == pb.ACK_STATUS_STORED  # the first message after Welcome
        assert (await http.get(f"/v1/frames/{parent}/requests")).json()["max_bytes"] == 0


async def test_deadlines_budgets_and_malformed_requests(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with asked(decoder, make_frame, tmp_path, request_bytes_per_hour=2000) as (_, http, parent):
        url = f"/v1/frames/{parent}/requests"
        bad: list[Any] = [
            {}, {"kind": "worse"}, {"kind": "region"}, {"kind": "better", "path": "/etc"}, [], None,
            {"kind": "better", "max_bytes": 1 << 40}, {"kind": "better", "deadline_seconds": 0.9},
            REGION | {"kind": "now"}, REGION | {"region": REGION["region"] | {"x": 577}},  # type: ignore[operator]
            REGION | {"region": REGION["region"] | {"width": 15}},  # type: ignore[operator]
        ]  # fmt: skip
        for body in bad:
            assert (await http.post(url, json=body)).status_code == 400, body
        assert (await http.post(url, content=b"{" * 5000)).status_code == 413
        assert (await http.post(f"/v1/frames/{uuid4()}/requests", json={"kind": "better"})).status_code == 404
        assert (await http.get(f"{url}/{uuid4()}")).status_code == 404
        assert (await http.get(f"{url}/nothing")).status_code == 400
        soon = {"kind": "better", "max_bytes": 1500, "deadline_seconds": 1}
        posted = await http.post(url, json=soon)
        full = await http.post(url, json=soon)
        assert full.status_code == 429 and "REQUEST_BYTES_PER_HOUR" in full.json()["detail"]
        assert full.json()["type"] == BUDGET_SPENT
        state = await ended(http, posted)
        assert (state["reason"], state["bytes"]) == ("expired", 0)
        assert (await http.get(url)).json()["hour_bytes_left"] == 2000 - 256
        assert (await http.post(url, json=soon)).status_code == 202
    async with asked(decoder, make_frame, tmp_path / "none", request_bytes_per_hour=0) as (_, http, parent):
        refused = await http.post(f"/v1/frames/{parent}/requests", json=soon)
        assert refused.status_code == 403 and refused.json()["type"] == "urn:aeic:requests-forbidden"


async def test_tenants_neither_see_nor_answer_each_others_requests(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with (
        running_cloud(decoder, tmp_path, tokens="a:token-of-a,b:token-of-b") as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
        Box(cloud.grpc) as mine,
        Box(cloud.grpc) as theirs,
    ):
        new = new_frame(make_frame(1, 64, 64), tenant="a", source="box")
        cloud.store.frames.add([new], time.time())
        url, a, b = (
            f"/v1/frames/{new.id}/requests",
            {"Authorization": "Bearer token-of-a"},
            {"Authorization": "Bearer token-of-b"},
        )
        assert (await http.post(url, json={"kind": "better"})).status_code == 401
        assert (await http.post(url, json={"kind": "better"}, headers=b)).status_code == 404
        await theirs.greet(bundle, "token-of-b")
        posted = await http.post(url, json={"kind": "better"}, headers=a)
        request = UUID(posted.json()["id"])
        await theirs.refuse(request.bytes, pb.REFUSAL_REASON_GONE)
        await theirs.send(make_frame(2, 64, 64), request)
        await theirs.nothing()
        assert (await http.get(f"{url}/{request}", headers=a)).json()["state"] == "open"
        assert (await http.get(f"{url}/{request}", headers=b)).status_code == 404
        assert (await http.get(f"/v1/frames/{request}", headers=b)).json()["parent"] is None
        await mine.greet(bundle, "token-of-a")
        assert UUID(bytes=(await mine.request()).id) == request


async def test_frames_flow_while_requests_do(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    """Every frame is acknowledged in order, with requests between them."""
    async with asked(decoder, make_frame, tmp_path) as (cloud, http, parent), Box(cloud.grpc) as box:
        await box.greet(bundle)
        stored = 0
        requests: set[bytes] = set()
        for number in range(30):
            await box.send(make_frame(number, 64, 64), uuid4(), prompt=True)
            if number % 3 == 0:
                await http.post(f"/v1/frames/{parent}/requests", json={"kind": "better", "max_bytes": 100})
        while stored < 30 or len(requests) < 10:
            message = await box._read()
            stored += message.stored
            if message.WhichOneof("message") == "request":
                requests.add(message.request.id)
        assert stored == 30 and len(requests) == 10
        await box.finish()
        assert await box._call.read() is grpc.aio.EOF


def new_request(parent: UUID, **changed: Any) -> NewRequest:
    values: dict[str, Any] = {
        "tenant": "", "id": new_request_id(), "parent": parent, "source": "s", "box": "s", "kind": RequestKind.REGION,
        "region": [1, 2, 128, 96], "max_bytes": 9000, "created_ms": NOW_MS, "deadline_ms": NOW_MS + 1000,
    }  # fmt: skip
    return NewRequest(**values | changed)


def test_a_request_ends_once_and_its_hour_is_counted(store_url: str, make_frame: MakeFrame) -> None:
    store = Store(store_url)
    parent = new_frame(make_frame(1), source="s")
    store.frames.add([parent], NOW)
    first = store.requests.add(new_request(parent.id), 20_000)
    second = store.requests.add(new_request(parent.id, kind=RequestKind.BETTER, region=None), 20_000)
    assert first and second and second.region is None and first.region == [1, 2, 128, 96]
    assert store.requests.add(new_request(parent.id), 20_000) is None
    assert store.requests.spent("", "s", NOW_MS) == 18_000 and store.requests.spent("", "s", NOW_MS + HOUR_MS) == 0
    assert [one.id for one in store.requests.open({("", "s")})] == [first.id, second.id]
    assert store.requests.open({("x", "s"), ("", "t")}) == []
    answer = new_frame(make_frame(2), source="s", id=first.id)
    store.frames.add([answer], NOW)
    found = store.requests.get("", first.id)
    assert found is not None and (found.state, found.bytes) == (RequestState.ANSWERED, len(answer.bitstream))
    assert store.requests.refuse("", "s", first.id, RefusalReason.GONE, "", NOW_MS) is None
    assert [one.id for one in store.requests.expire(NOW_MS + 1000)] == [second.id]
    assert store.requests.expire(NOW_MS + 1000) == []
    frame = store.frames.get("", first.id)
    assert frame is not None and (frame.parent, frame.kind, frame.region) == (parent.id, "region", [1, 2, 128, 96])
    stranger = new_frame(make_frame(3), source="another", id=second.id)
    store.frames.add([stranger], NOW)
    frame = store.frames.get("", second.id)
    assert frame is not None and frame.parent is None
    store.close()


def test_many_requests_of_one_box_and_kind_do_not_hide_others(store_url: str) -> None:
    store = Store(store_url)
    asked: list[dict[str, Any]] = [
        {},
        {},
        {"kind": RequestKind.ORIGINAL},
        {"tenant": "x"},
        {"kind": RequestKind.ORIGINAL},
    ]
    ids = []
    for changed in asked:
        stored = store.requests.add(new_request(uuid4(), **changed), 90_000)
        assert stored is not None
        ids.append(stored.id)
    found = store.requests.open({("", "s"), ("x", "s")}, each=1)
    assert [one.id for one in found] == [ids[0], ids[2], ids[3]]
    store.close()


def test_an_answer_is_deleted_with_its_parent_and_brought_back_with_it(store_url: str, make_frame: MakeFrame) -> None:
    store = Store(store_url)
    parent, other = new_frame(make_frame(1), source="s"), new_frame(make_frame(4), source="s")
    store.frames.add([parent, other], NOW)
    request = new_request(parent.id)
    store.requests.add(request, 9000)
    store.frames.add([new_frame(make_frame(2), source="s", id=request.id)], NOW + 100)
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE frames SET state = 'failed'")
    assert store.retention.mark(NOW_MS, older_than_ms=NOW_MS + 50, limit=1) == 2

    def state(id: UUID) -> FrameState:
        found = store.frames.get("", id)
        assert found is not None
        return found.state

    assert (state(parent.id), state(request.id), state(other.id)) == ("pruned", "pruned", "failed")
    assert store.retention.undelete("", parent.id) == 2 and state(request.id) == "failed"
    store.close()


def jpeg(number: int = 0, size: tuple[int, int] = (320, 240)) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 40 + number).convert("RGB").save(out, "JPEG")
    return out.getvalue()


ORIGINAL = {"kind": "original", "max_bytes": 40_000}


async def test_an_original_comes_in_pieces_and_is_served_as_a_file(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    data = jpeg() + b"<html><script>alert(1)</script>"
    async with asked(decoder, make_frame, tmp_path) as (cloud, http, parent):
        async with Box(cloud.grpc) as box:
            await box.greet(bundle)
            assert box.welcome.takes_originals
            of_frame = (await http.get(f"/v1/frames/{parent}/requests")).json()
            assert (of_frame["max_bytes"], of_frame["original_max_bytes"]) == (4096, 50_000)
            posted = await http.post(f"/v1/frames/{parent}/requests", json=ORIGINAL)
            request = await box.request()
            assert (request.kind, request.source_id, request.max_bytes) == (
                pb.REQUEST_KIND_ORIGINAL, "box/door", 40_000,
            )  # fmt: skip
            assert (await box.piece(request.id, data, 0, 3000)).received_bytes == 3000
            assert (await box.piece(request.id, data, 0, 3000)).received_bytes == 3000, "again: nothing is added"
            assert (await box.piece(request.id, data, 5000, 3000)).received_bytes == 3000, "behind a hole"
        async with Box(cloud.grpc) as box:  # another stream goes on where the last one was
            await box.greet(bundle)
            again = await box.request()
            assert again.id == request.id
            assert (await box.piece(request.id, data, 0, 1000)).received_bytes == 3000
            ack = await box.piece(request.id, data, 3000)
            assert ack.received_bytes == len(data) and not ack.unwanted
            state = await ended(http, posted)
            assert (state["state"], state["bytes"]) == ("answered", len(data))
            assert (await box.piece(request.id, data, 0, 1000)).unwanted, "it has ended"
        id = state["answer"]
        frame = (await http.get(f"/v1/frames/{id}")).json()
        schemas.FrameBody.model_validate(frame)
        assert (frame["parent"], frame["kind"], frame["media_type"]) == (str(parent), "original", "image/jpeg")
        assert (frame["width"], frame["height"], frame["original_width"]) == (320, 240, 640)
        assert (frame["state"], frame["source"], frame["bytes"]) == ("done", "box/door", len(data))
        file = await http.get(f"/v1/frames/{id}/file")
        assert file.content == data and file.headers["content-type"] == "image/jpeg"
        assert file.headers["content-disposition"] == f'attachment; filename="{id}.jpg"'
        assert file.headers["x-content-type-options"] == "nosniff"
        assert file.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert file.headers["cross-origin-resource-policy"] == "same-origin"
        for path in ("image", "bitstream", "sizes", "composed"):
            refused = await http.get(f"/v1/frames/{id}/{path}")
            assert refused.status_code == 409 and "/file" in refused.json()["detail"], path
        refused = await http.get(f"/v1/frames/{parent}/file")
        assert refused.status_code == 409 and "/image" in refused.json()["detail"]
        listed = (await http.get("/v1/frames", params={"parent": str(parent)})).json()["frames"]
        assert [one["id"] for one in listed] == [id]
        assert cloud.store.queue.waiting(time.time()).ready <= 1, "it is not decoded"


async def test_a_file_that_was_not_asked_for_or_is_no_picture_is_not_taken(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    given = asked(decoder, make_frame, tmp_path, request_bytes_per_hour=1 << 20)
    async with given as (cloud, http, parent), Box(cloud.grpc) as box, Box(cloud.grpc) as other:
        await box.greet(bundle)
        await other.greet(bundle, source="other")
        data = jpeg()
        assert (await box.piece(new_request_id().bytes, data)).unwanted
        assert (await box.piece(b"short", data)).unwanted
        better = await http.post(f"/v1/frames/{parent}/requests", json={"kind": "better"})
        assert (await box.piece((await box.request()).id, data)).unwanted, "it was not asked for a file"
        posted = await http.post(f"/v1/frames/{parent}/requests", json=ORIGINAL)
        id = (await box.request()).id
        assert (await other.piece(id, data)).unwanted, "it was not asked"
        assert (await box.piece(id, data, sha256=b"short")).unwanted
        assert (await box.piece(id, data, data=bytes((1 << 16) + 1), total_bytes=40_000)).unwanted
        assert (await box.piece(id, data, 0, 2000)).received_bytes == 2000
        assert (await other.piece(id, data, 2000)).unwanted
        assert (await box.piece(id, data + b"x")).received_bytes == len(data) + 1, "another file begins anew"
        state = await ended(http, posted)
        assert (state["state"], state["bytes"]) == ("answered", len(data) + 1)
        refusals: list[tuple[bytes, dict[str, Any], str]] = [
            (b"<!doctype html><title>x</title>" * 9, {}, "no JPEG"),
            (jpeg(1), {"total_bytes": 40_001}, "more than was asked"),
            (b"GIF89a" + bytes(99), {}, "GIF"),
            (jpeg(2)[:20], {}, "cut short"),
        ]
        for data, changed, word in refusals:
            posted = await http.post(f"/v1/frames/{parent}/requests", json=ORIGINAL)
            await box.piece((await box.request()).id, data, **changed)
            state = await ended(http, posted)
            assert (state["state"], state["reason"]) == ("refused", "unsupported") and word in state["detail"]
            assert (await http.get(f"/v1/frames/{state['id']}")).status_code == 404
        assert (await http.get(better.headers["location"])).json()["state"] == "open"


async def test_a_damaged_file_is_sent_again_and_a_store_that_cannot_write_keeps_it(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jpeg(3)
    async with asked(decoder, make_frame, tmp_path) as (cloud, http, parent), Box(cloud.grpc) as box:
        await box.greet(bundle)
        posted = await http.post(f"/v1/frames/{parent}/requests", json=ORIGINAL)
        id = (await box.request()).id
        damaged = data[:500] + b"x" + data[501:]
        await box.piece(id, data, data=damaged)
        await until(lambda: not cloud.ingest._originals._arriving)
        assert (await box.piece(id, data, 0, 100)).received_bytes == 100, "from the start"
        add, failures = cloud.store.frames.add, [StoreUnavailable("full")]

        def fails_once(*given: Any, **more: Any) -> Any:
            if failures:
                raise failures.pop()
            return add(*given, **more)

        monkeypatch.setattr(cloud.store.frames, "add", fails_once)
        assert (await box.piece(id, data, 100)).received_bytes == len(data)
        await until(lambda: not failures)
        await asyncio.sleep(0.1)
        assert (await box.piece(id, data, 0, 100)).received_bytes == len(data), "it holds all of it"
        assert (await ended(http, posted))["state"] == "answered"
        assert (await http.get(f"/v1/frames/{UUID(bytes=id)}/file")).content == data
        assert not cloud.ingest._originals._held.held


async def test_files_that_arrive_are_bounded_in_memory_and_idle_ones_give_way(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(originals, "HELD_BYTES", 32_000)
    given = asked(decoder, make_frame, tmp_path, request_bytes_per_hour=1 << 20)
    async with given as (cloud, http, parent), Box(cloud.grpc) as box:
        await box.greet(bundle)
        ids = []
        for _ in range(2):
            await http.post(f"/v1/frames/{parent}/requests", json=ORIGINAL)
            ids.append((await box.request()).id)
        first = bytes(30_000)
        assert (await box.piece(ids[0], first, 0, 29_000)).received_bytes == 29_000
        later = asyncio.ensure_future(box.piece(ids[1], bytes(30_001), 0, 2000))
        await asyncio.sleep(0.5)
        assert not later.done(), "no answer: it asks later"
        monkeypatch.setattr(originals, "IDLE_SECONDS", 0.0)
        await box.raw(pb.DeliverRequest(piece=piece_of(ids[1], bytes(30_001), 0, 2000)))
        assert (await later).received_bytes == 2000
        assert cloud.ingest._originals._held.held == originals.ENTRY_BYTES + 2000


async def test_files_of_which_nothing_comes_keep_no_other_tenant_from_its_originals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(originals, "HELD_BYTES", 50 * originals.ENTRY_BYTES)
    open_requests: dict[tuple[str, UUID], Any] = {}
    find = SimpleNamespace(get=lambda tenant, id: open_requests.get((tenant, id)))
    store, dispatch = cast(Any, SimpleNamespace(requests=find)), cast(Any, SimpleNamespace(now=time.time))
    taken = originals.Originals(store, cast(Any, None), dispatch, max_bytes=1 << 20, max_pixels=1 << 20, shared=True)

    async def piece(tenant: str, id: UUID, data: bytes, offset: int = 0) -> pb.PieceAck | None:
        given: dict[str, Any] = {"total_bytes": 40_000, "sha256": bytes(32), "offset": offset, "data": data}
        return await taken.take(tenant, "s", pb.Piece(request_id=id.bytes, **given))

    def new(tenant: str) -> UUID:
        request = new_request(uuid4(), tenant=tenant, kind=RequestKind.ORIGINAL, region=None, max_bytes=40_000)
        given = {name: getattr(request, name) for name in NewRequest.__dataclass_fields__}
        given |= {"deadline_ms": int(time.time() * 1000) + 60_000, "bytes": 0, "state": RequestState.OPEN, "seq": 1}
        open_requests[tenant, request.id] = StoredRequest(**given, finished_ms=None, reason=None, detail=None)
        return request.id

    greedy = [new("greedy") for _ in range(100)]
    answers = [await piece("greedy", id, b"") for id in greedy]
    assert sum(one is not None for one in answers) == 40, "four fifths, while it is alone"
    ack = await piece("modest", new("modest"), bytes(5000))
    assert ack is not None and ack.received_bytes == 5000
    monkeypatch.setattr(originals, "IDLE_SECONDS", 0.2)
    await asyncio.sleep(0.3)
    for id in greedy[:40]:
        await piece("greedy", id, b"")
        await piece("greedy", id, b"x", offset=7)
    assert await piece("modest", new("modest"), bytes(30_000)) is not None, "what is no progress does not keep a place"


async def test_a_new_picture_can_be_asked_about_and_is_deleted_with_its_parent(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with asked(decoder, make_frame, tmp_path) as (cloud, http, parent), Box(cloud.grpc) as box:
        await box.greet(bundle)
        now = await http.post(f"/v1/frames/{parent}/requests", json={"kind": "now"})
        request = await box.request()
        assert (request.kind, request.source_id) == (pb.REQUEST_KIND_NOW, "box/door")
        await box.send(make_frame(2, 64, 64), UUID(bytes=request.id), source_id="box/door")
        picture = (await ended(http, now))["answer"]
        part = await http.post(f"/v1/frames/{picture}/requests", json=ORIGINAL)
        assert part.status_code == 202, part.text
        await box.piece((await box.request()).id, jpeg())
        file = (await ended(http, part))["answer"]
        await http.get(f"/v1/frames/{picture}/image", params={"wait": 20})
        await http.get(f"/v1/frames/{parent}/image", params={"wait": 20})
        assert len(cloud.store.frames.page("", 9).rows) == 3
        mark, now_ms = cloud.store.retention.mark, int(time.time() * 1000)
        assert mark(now_ms, older_than_ms=1 << 60, limit=1) == 1, "to retention it is a picture of its own"
        assert (await http.get(f"/v1/frames/{picture}")).json()["state"] == "done"
        assert mark(now_ms, older_than_ms=1 << 60, limit=1) == 2, "its own answers go with it"
        assert (await http.get(f"/v1/frames/{file}/file")).status_code == 410
        assert cloud.store.retention.undelete() == 3
        deleted = cloud.store.retention.delete("", parent, now_ms)
        assert deleted is not None and {id for id, _ in deleted.frames} == {parent, UUID(picture), UUID(file)}
        for id in (parent, picture, file):
            assert (await http.get(f"/v1/frames/{id}")).json()["state"] == "pruned"
        assert (await http.get(f"/v1/frames/{file}/file")).status_code == 410
        assert cloud.store.retention.undelete(deleted=True) == 3
        assert (await http.get(f"/v1/frames/{file}/file")).status_code == 200


@pytest.mark.parametrize(
    ("request_of", "answer"),
    [
        ({}, {"width": 129, "height": 96}),
        ({}, {"width": 128, "height": 97}),
        ({"max_bytes": 300}, {"content": bytes(301)}),
        ({"kind": RequestKind.BETTER, "region": None, "max_bytes": 300}, {"content": bytes(301)}),
        ({}, {"media_type": "image/jpeg"}),
        ({"kind": RequestKind.ORIGINAL, "region": None}, {}),
        ({"kind": RequestKind.ORIGINAL}, {"media_type": "image/jpeg", "width": 129}),
    ],
)
def test_what_was_not_asked_for_is_kept_and_answers_nothing(
    store_url: str, request_of: dict[str, Any], answer: dict[str, Any]
) -> None:
    store = Store(store_url)
    parent = stored_frame(b"parent", source="s")
    store.frames.add([parent], NOW)
    request = new_request(parent.id, **request_of)
    assert store.requests.add(request, 90_000)
    frame = stored_frame(id=request.id, source="s", **answer)
    assert store.frames.add([frame], NOW) == [Added.STORED]
    row, found = store.frames.get("", request.id), store.requests.get("", request.id)
    assert row is not None and (row.parent, row.kind, row.region) == (None, None, None)
    assert found is not None and (found.state, found.bytes) == (RequestState.OPEN, request.max_bytes)
    store.close()


def test_what_was_asked_for_answers(store_url: str) -> None:
    store = Store(store_url)
    parent = stored_frame(b"parent", source="s")
    store.frames.add([parent], NOW)
    kinds: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"width": 128, "height": 96}),
        ({"kind": RequestKind.BETTER, "region": None}, {"width": 8000}),
        ({"kind": RequestKind.NOW, "region": None}, {"width": 8000}),
        ({"kind": RequestKind.ORIGINAL, "region": None}, {"media_type": "image/png", "width": 8000}),
        ({"kind": RequestKind.ORIGINAL}, {"media_type": "image/jpeg"}),
    ]
    for changed, answer in kinds:
        request = new_request(parent.id, **changed)
        assert store.requests.add(request, 90_000)
        store.frames.add([stored_frame(b"x", request.id, source="s", **answer)], NOW)
        found = store.requests.get("", request.id)
        assert found is not None and found.state is RequestState.ANSWERED, changed
    store.close()


def test_requests_without_an_answer_cost_something_are_limited_and_do_not_stay(store_url: str) -> None:
    store = Store(store_url)
    least = LEAST_CHARGE_BYTES
    for number in range(4):
        new = new_request(uuid4(), max_bytes=64, deadline_ms=NOW_MS + 1)
        assert (store.requests.add(new, 3 * least) is None) == (number == 3)
        assert len(store.requests.expire(NOW_MS + 1)) == (number < 3)
    assert store.requests.spent("", "s", NOW_MS) == 3 * least
    for number in range(MOST_OPEN + 1):
        assert (store.requests.add(new_request(uuid4(), max_bytes=64), 1 << 30) is None) == (number == MOST_OPEN)
    assert store.requests.add(new_request(uuid4(), source="another"), 1 << 30)
    assert store.requests.remove(NOW_MS + 1) == 0
    assert [store.requests.remove(NOW_MS + 2, limit=2) for _ in range(3)] == [2, 1, 0]
    assert len(store.requests.open({("", "s")}, each=1000)) == MOST_OPEN + 1
    store.close()


def test_later_answers_of_other_kinds_do_not_hide_regions(store_url: str) -> None:
    store = Store(store_url)
    parent = stored_frame(b"parent", source="s")
    store.frames.add([parent], NOW)

    def answered(**changed: Any) -> UUID:
        request = new_request(parent.id, **changed)
        assert store.requests.add(request, 1 << 30)
        store.frames.add([stored_frame(request.id.bytes, request.id, source="s")], NOW)
        return request.id

    regions = [answered() for _ in range(3)]
    for _ in range(16):
        answered(kind=RequestKind.BETTER, region=None)
    found = store.frames.regions("", parent.id, 16)
    assert [one.id for one in found] == regions[::-1]
    assert [one.id for one in store.frames.regions("", parent.id, 2)] == regions[:0:-1]
    assert store.frames.regions("x", parent.id, 16) == []
    store.close()


async def test_the_composed_picture_is_counted_with_its_parts_and_stops_with_its_client(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One place for the composed picture and the largest other one, held until the work has ended."""
    async with asked(decoder, make_frame, tmp_path) as (cloud, http, parent):
        rows = []
        for number, side in enumerate((64, 128, 64)):
            region = [10 * number, 20, side, side]
            request = new_request(parent, source="box/door", region=region, created_ms=int(time.time() * 1000))
            assert cloud.store.requests.add(request, 1 << 30)
            frame = new_frame(make_frame(number + 2, side, side), request.id, source="box/door", box="box")
            rows.append(frame)
            cloud.store.frames.add([frame], time.time())
        for row in rows:
            assert (await http.get(f"/v1/frames/{row.id}/image", params={"wait": 20})).status_code == 200
        url = f"/v1/frames/{parent}/composed"
        kept = await http.get(url, params={"wait": 20})
        with monkeypatch.context() as patched:
            patched.setattr(cloud._cache, "get", lambda *_: None)  # it is too small
            again = await http.get(url, params={"wait": 20})
        assert kept.status_code == again.status_code == 200 and kept.content == again.content
        painted, go, began = [], threading.Event(), threading.Event()

        def paste(*given: Any) -> None:
            painted.append(threading.current_thread().name)
            began.set()
            assert go.wait(20)

        monkeypatch.setattr(image_service, "paste", paste)
        with pytest.raises(httpx.ReadTimeout):
            await http.get(url, params={"wait": 20}, timeout=0.5)
        await until(lambda: cloud.waiters.held == 0)
        assert began.is_set() and cloud.admission.pixels.held == 640 * 480 + 128 * 128
        assert (await http.get(f"/v1/frames/{parent}")).status_code == 200
        go.set()
        await until(lambda: cloud.admission.pixels.held == 0)
        assert len(painted) == 1 and painted[0].startswith("composing")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"kind": "now", "region": REGION["region"]}, "region"),
        ({"kind": "better", "max_bytes": (1 << 20) + 1}, "1048576"),
        ({"kind": "original", "max_bytes": 9 << 20}, "AEIC_CLOUD_REQUEST_ORIGINAL_BYTES"),
    ],
)
async def test_what_does_not_fit_together_is_refused_by_the_cloud(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, body: dict[str, Any], word: str
) -> None:
    async with asked(decoder, make_frame, tmp_path) as (_, http, parent):
        answer = await http.post(f"/v1/frames/{parent}/requests", json=body)
        assert answer.status_code == 400 and word in answer.json()["detail"]
