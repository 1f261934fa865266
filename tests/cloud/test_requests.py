"""Requests for more of a picture, in the cloud: the API, the stream to a box, budgets, tenants and retention."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import pytest
from PIL import Image

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from aeic_client.messages import BUDGET_SPENT
from cloud_decoder import request_dispatch
from cloud_decoder.http_api import image_service, schemas
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.store.requests import LEAST_CHARGE_BYTES
from cloud_decoder.store.store import OpenRequest, RefusalReason, RequestKind
from tests.support.cloud.cloud import IngestClient, running_cloud
from tests.support.frames import MakeFrame, new_frame
from tests.support.requests import Box, asked, ended, jpeg, new_request
from tests.support.waiting import until

REGION: dict[str, Any] = {"kind": "region", "region": {"x": 10, "y": 20, "width": 64, "height": 64}}


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
            REGION | {"kind": "now"}, REGION | {"region": REGION["region"] | {"x": 577}},
            REGION | {"region": REGION["region"] | {"width": 15}},
            REGION | {"region": REGION["region"] | {"x": True}},
            {"kind": "better", "max_bytes": "1500"}, {"kind": "better", "max_bytes": 1500.5},
            {"kind": "better", "deadline_seconds": "60"}, {"kind": "better", "deadline_seconds": True},
        ]  # fmt: skip
        for body in bad:
            assert (await http.post(url, json=body)).status_code == 400, body
        for name in ("max_bytes", "deadline_seconds"):
            for number in ("NaN", "Infinity", "1e400", "true", "9" * 4000, "0100", "1_00", "+100"):
                refused = await http.post(url, content=f'{{"kind": "better", "{name}": {number}}}')
                assert refused.status_code == 400 and refused.json()["type"] == "urn:aeic:invalid-parameter", number
        assert (await http.post(url, content=b"{" * 5000)).status_code == 413
        for deep in (b"[" * 4000, b'{"region":' * 400, b'{"kind":' + b"[" * 1900 + b"]" * 1900 + b"}"):
            refused = await http.post(url, content=deep)
            assert refused.status_code == 400 and refused.json()["type"] == "urn:aeic:invalid-parameter", refused.text
        assert (await http.post(f"/v1/frames/{uuid4()}/requests", json={"kind": "better"})).status_code == 404
        assert (await http.get(f"{url}/{uuid4()}")).status_code == 404
        assert (await http.get(f"{url}/nothing")).status_code == 400
        soon = {"kind": "better", "max_bytes": 1500, "deadline_seconds": 1}
        posted = await http.post(url, json=soon)
        full = await http.post(url, json=soon | {"max_bytes": 1500.0})
        assert full.status_code == 429 and full.json()["type"] == BUDGET_SPENT
        assert full.json()["detail"] == (
            "source 'box/door' may be asked for 2000 bytes an hour, of which 500 are left: ask for less, ask for 1500"
            " bytes again in 60 min, or raise AEIC_CLOUD_REQUEST_BYTES_PER_HOUR"
        )
        assert 3500 < int(full.headers["retry-after"]) <= 3600
        much = await http.post(url, json=soon | {"max_bytes": 2001})
        assert much.status_code == 429 and "which is less than 2001" in much.json()["detail"]
        beside = REGION | {"region": REGION["region"] | {"x": 577}}
        detail = (await http.post(url, json=beside)).json()["detail"]
        assert "it ends at 641,84, outside the original" in detail and "640x480 pixels" in detail
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


async def test_requests_that_get_no_answer_block_no_others(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A box that ignores requests is sent one about another source at once, and all of them in time."""
    monkeypatch.setattr(request_dispatch, "AT_ONCE", 4)
    monkeypatch.setattr(request_dispatch, "AGAIN_SECONDS", 3600.0)
    async with asked(decoder, make_frame, tmp_path) as (cloud, http, parent), Box(cloud.grpc) as box:
        other = new_frame(make_frame(2, 64, 64), source="box/yard", box="box")
        cloud.store.frames.add([other], time.time())
        await box.greet(bundle)
        better = {"kind": "better", "max_bytes": 100, "deadline_seconds": 3600}
        posted = [(await http.post(f"/v1/frames/{parent}/requests", json=better)).json()["id"] for _ in range(10)]
        assert [str(UUID(bytes=(await box.request()).id)) for _ in range(4)] == posted[:4]
        last = (await http.post(f"/v1/frames/{other.id}/requests", json=better)).json()["id"]
        assert str(UUID(bytes=(await box.request()).id)) == last
        monkeypatch.setattr(request_dispatch, "AGAIN_SECONDS", 0.5)
        left = set(posted[4:])
        async with asyncio.timeout(60):
            while left:
                left.discard(str(UUID(bytes=(await box.request()).id)))


def test_requests_are_sent_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(request_dispatch, "time", SimpleNamespace(monotonic=lambda: clock.now))
    outbox = request_dispatch.Outbox("", "box", 4096)
    many = [OpenRequest(seq, "", "box", "box", RequestKind.ORIGINAL) for seq in range(150)]
    other = OpenRequest(150, "", "box", "yard", RequestKind.ORIGINAL)
    region = OpenRequest(151, "", "box", "box", RequestKind.REGION)

    def turn(waiting: list[OpenRequest]) -> list[int]:
        chosen = outbox.turn(waiting)
        for seq in chosen:
            outbox._sent[seq] = clock.now
        return chosen

    assert turn(many) == list(range(64))
    assert turn([*many, other, region]) == [150, 151], "those of another source and kind do not wait"
    assert turn(many[2:]) == [64, 65], "one that has ended makes room for the next"
    clock.now += request_dispatch.AGAIN_SECONDS
    assert turn(many[2:]) == list(range(66, 130)), "those that were not sent yet go first"
    clock.now += request_dispatch.AGAIN_SECONDS
    assert turn(many[2:]) == [*range(130, 150), *range(2, 46)], "then those that were sent the longest ago"


ORIGINAL = {"kind": "original", "max_bytes": 40_000}


def test_a_request_that_is_not_answered_is_sent_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The box pays for what it receives: a request of a day must not cost it 2,880 messages."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(request_dispatch, "time", SimpleNamespace(monotonic=lambda: clock.now))
    outbox = request_dispatch.Outbox("", "box", 4096)
    one = OpenRequest(7, "", "box", "box", RequestKind.ORIGINAL)
    sent = []
    for second in range(3600):
        clock.now = 1000.0 + second
        for seq in outbox.turn([one]):
            message: Any = SimpleNamespace(seq=seq)
            outbox.send(message)
            outbox._queue.get_nowait()
            sent.append(second)
    assert sent == [0, 30, 90, 210, 450, 930, 1410, 1890, 2370, 2850, 3330]
    assert outbox.turn([]) == [] and not outbox._sent and not outbox._repeats


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
        cloud._cache.remove({row.digest for row in rows})  # the cache is too small
        with monkeypatch.context() as patched:
            patched.setattr(cloud._cache, "get", lambda *_: None)
            again = await http.get(url, params={"wait": 20})
        assert kept.status_code == again.status_code == 200 and kept.content == again.content
        painted, go, began = [], threading.Event(), threading.Event()

        def paste(*given: Any) -> None:
            painted.append(threading.current_thread().name)
            began.set()
            assert go.wait(20)

        monkeypatch.setattr(image_service, "paste", paste)
        with pytest.raises(httpx.ReadTimeout):
            await http.get(url, params={"wait": 20, "width": 600}, timeout=0.5)
        await until(lambda: cloud.waiters.held == 0)
        assert began.is_set() and cloud.admission.pixels.held == 640 * 480 + 128 * 128
        assert (await http.get(f"/v1/frames/{parent}")).status_code == 200
        go.set()
        await until(lambda: cloud.admission.pixels.held == 0)
        assert len(painted) == 1 and painted[0].startswith("composing")


async def test_a_composed_picture_is_kept_until_its_answers_change_and_goes_with_them(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asked(decoder, make_frame, tmp_path, allow_delete="always") as (cloud, http, parent):
        painted = 0

        def paste(*given: Any) -> None:
            nonlocal painted
            painted += 1

        monkeypatch.setattr(image_service, "paste", paste)
        url, answers = f"/v1/frames/{parent}/composed", list[UUID]()

        async def composed(**params: Any) -> tuple[httpx.Response, int]:
            before = painted
            response = await http.get(url, params={"wait": 20, **params}, timeout=30)
            assert response.status_code == 200, response.text
            assert response.headers["x-composed-from"] == ", ".join(map(str, answers))
            return response, painted - before

        def answer() -> None:
            request = new_request(parent, source="box/door", created_ms=int(time.time() * 1000))
            assert cloud.store.requests.add(request, 1 << 30)
            frame = new_frame(make_frame(len(answers) + 2), request.id, source="box/door", box="box")
            cloud.store.frames.add([frame], time.time())
            answers.append(request.id)

        def kept() -> int:
            row = cloud.store.frames.get("", parent)
            assert row is not None
            return sum(path.name.startswith(f"{row.digest}-c") for path in (tmp_path / "cache").rglob("*-c*"))

        answer()
        first, count = await composed()
        assert count == 1
        again, count = await composed()
        assert count == 0 and again.content == first.content and kept() == 1
        assert (await composed(format="webp", width=100))[1] == 1 and (await composed(format="webp", width=100))[1] == 0
        answer()
        assert (await composed())[1] == 2, "another answer makes another picture"
        assert kept() == 3
        gone = answers.pop()
        assert (await http.delete(f"/v1/frames/{gone}")).status_code in (200, 204)
        assert kept() == 0, "a picture that shows a deleted answer is deleted with it"
        assert (await composed())[1] == 1 and kept() == 1
        await http.delete(f"/v1/frames/{parent}")
        assert kept() == 0 and (await http.get(url)).status_code == 410


async def test_a_waiting_request_reads_the_store_at_its_own_events_only(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asked(decoder, make_frame, tmp_path) as (cloud, http, parent):
        posted = await http.post(f"/v1/frames/{parent}/requests", json={"kind": "better"})
        reads, get = 0, cloud.store.requests.get

        def counted(tenant: str, id: UUID) -> Any:
            nonlocal reads
            reads += 1
            return get(tenant, id)

        monkeypatch.setattr(cloud.store.requests, "get", counted)
        waiting = asyncio.create_task(http.get(posted.headers["location"], params={"wait": 20}, timeout=30))
        await until(lambda: reads == 1)
        for number in range(200):
            name = "id" if number % 2 else "request_id"
            cloud.event_bus.publish("", {"event": "received", name: str(uuid4())})
            await asyncio.sleep(0)
        assert reads < 20, "it looks twice a second, and not at events of others"
        assert cloud.store.requests.refuse("", "box", UUID(posted.json()["id"]), RefusalReason.GONE, "", 1)
        cloud.event_bus.publish("", {"event": "request", "request_id": posted.json()["id"]})
        assert (await waiting).json()["state"] == "refused"


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
