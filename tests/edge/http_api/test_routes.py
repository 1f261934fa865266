"""The HTTP API in process: what is answered to good pictures, bad pictures, odd requests and too many requests."""

from __future__ import annotations

import asyncio
import io
import threading
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aeic.bitstream import Frame
from edge_encoder.http_api import schemas
from tests.support.edge.fakes import FakeCloud, serving
from tests.support.edge.in_process import edge, is_problem
from tests.support.edge.spooled import new_record
from tests.support.pictures import picture
from tests.support.waiting import until


async def test_a_picture_is_encoded_and_spooled(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle) as (client, service):
        response = await client.post("/v1/frames", content=picture(100, 70))
        assert response.status_code == 202
        body = response.json()
        assert (body["width"], body["height"], body["state"]) == (100, 70, "spooled")
        assert body["bpp"] == pytest.approx(8 * body["bytes"] / 7000, rel=1e-3)
        assert body["encode_ms"] > 0 and set(body["timings_ms"]) == {"read", "analyse", "entropy"}
        assert uuid.UUID(body["id"]).version == 7
        (record,) = service.spool.lease(5)
        frame = Frame.parse(record.data)
        assert len(record.data) == body["bytes"]
        assert (frame.width, frame.height, frame.rate) == (100, 70, body["rate"])
        shown = (await client.get(response.headers["location"])).json()
        assert shown["state"] == "sending" and shown["bytes"] == body["bytes"]


async def test_odd_requests(tmp_path: Path, tiny_bundle: Path) -> None:
    good = picture()

    async with edge(tmp_path, tiny_bundle, max_body_bytes=20_000) as (client, _):
        post = client.post
        is_problem(await post("/v1/frames", params={"rate": "r9"}, content=good), 400, "r1", "r2")
        is_problem(await post("/v1/frames", params={"max_bytes": "many"}, content=good), 400, "max_bytes")
        is_problem(await post("/v1/frames", params={"max_bytes": 10}, content=good), 400, "max_bytes")
        is_problem(await post("/v1/frames", params={"priority": -1}, content=good), 400, "priority")
        is_problem(await post("/v1/frames", params={"wait": "forever"}, content=good), 400, "wait")
        for key in ("1234", "../../x", "{" + str(uuid.uuid4()) + "}"):
            is_problem(await post("/v1/frames", headers={"Idempotency-Key": key}, content=good), 400, "uuid")
        for moment in ("yesterday", "-5", "99999-01-01", "9" * 30):
            is_problem(await post("/v1/frames", headers={"X-Captured-At": moment}, content=good), 400, "RFC 3339")
        for source in (b"roof\x01", b"\xff", b"a" * 129, "\U0001f4f7".encode() * 64):  # the cloud would reject them
            is_problem(await post("/v1/frames", headers={b"X-Source-Id": source}, content=good), 400, "X-Source-Id")
        is_problem(await post("/v1/frames", content=bytes(20_001)), 413, "AEIC_EDGE_MAX_BODY_BYTES")

        async def unstated() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield bytes(1000)

        is_problem(await post("/v1/frames", content=unstated()), 413, "20000")
        for ident in ("x", "1", "%00", "a" * 63, "..%2f..%2fetc"):
            response = await client.get(f"/v1/frames/{ident}")
            assert response.status_code in (400, 404) and response.headers["content-type"].startswith("app")
        is_problem(await client.get(f"/v1/frames/{uuid.uuid4()}"), 404, "no frame")
        is_problem(await client.get("/v2/none"), 404)
        is_problem(await client.put("/v1/frames"), 405)
        head = await client.head("/healthz")
        assert head.status_code == 200 and not head.content and int(head.headers["content-length"]) > 0


async def test_rate_and_max_bytes(tmp_path: Path, tiny_bundle: Path) -> None:
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 384, 3), dtype=np.uint8)).save(noise, "PNG")

    async with edge(tmp_path, tiny_bundle) as (client, _):

        async def post(**encode_request: str | int) -> dict[str, Any]:
            response = await client.post("/v1/frames", params=encode_request, content=noise.getvalue())
            assert response.status_code == 202, response.text
            body: dict[str, Any] = response.json()
            return body

        low, high = await post(rate="r1"), await post(rate=1)
        assert (low["rate"], high["rate"]) == (0, 1) and low["bytes"] < high["bytes"]
        assert (await post(max_bytes=high["bytes"]))["rate"] == 1
        assert (await post(max_bytes=high["bytes"] - 1))["rate"] == 0
        assert (await post(max_bytes=100_000, rate="r1"))["rate"] == 0
        small = await post(max_bytes=low["bytes"] // 4)
        assert small["bytes"] <= low["bytes"] // 4 and small["width"] < small["original_width"] == 384
        assert (await post(max_side=96))["width"] == 96
        assert (await post(preset="1kB"))["bytes"] <= 1000
        wrong = await client.post("/v1/frames?max_byte=900", content=noise.getvalue())
        is_problem(wrong, 400, "'max_bytes'")


async def test_the_box_has_limits_for_pictures_that_ask_for_none(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle, max_side=96, target_bytes=40) as (client, _):

        async def post(**asked: str | int) -> dict[str, Any]:
            response = await client.post("/v1/frames", params=asked, content=picture(400, 300, quality=30))
            assert response.status_code == 202, response.text
            body: dict[str, Any] = response.json()
            return body

        assert (await post())["bytes"] <= 40 and (await post())["width"] <= 96
        assert (await post(max_side=64))["width"] <= 64
        large = await post(max_bytes=100_000, max_side=8192)
        assert (large["width"], large["rate"]) == (400, 1)
        assert (await post(max_bytes=100_000))["width"] == 96


async def test_the_default_rate_follows_the_link(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle, target_age_seconds=0.2, cloud_address="127.0.0.1:1") as (
        client,
        service,
    ):
        assert service.link_adaptation is not None
        service.link_adaptation.rate = service.link_adaptation._ceiling = 1
        assert (await client.post("/v1/frames", content=picture())).json()["rate"] == 1
        await asyncio.sleep(1.6)  # the cloud is down and the frame grows old
        assert (await client.post("/v1/frames", content=picture())).json()["rate"] == 0
        assert (await client.post("/v1/frames?rate=1", content=picture())).json()["rate"] == 1
        assert (await client.get("/v1/status")).json()["default_rate"] == 0


async def test_posting_twice_under_one_key_makes_one_frame(tmp_path: Path, tiny_bundle: Path) -> None:
    key = str(uuid.uuid4())

    async with edge(tmp_path, tiny_bundle) as (client, service):
        headers = {"Idempotency-Key": key}
        first, *others = await asyncio.gather(
            *(client.post("/v1/frames", content=picture(), headers=headers) for _ in range(5))
        )
        assert {r.status_code for r in (first, *others)} == {202} and first.json()["id"] == key
        again = await client.post("/v1/frames", content=picture(), headers=headers)
        assert again.status_code == 202 and again.json()["duplicate"] is True
        assert service.spool.pending_frames == 1
        is_problem(await client.post("/v1/frames", content=picture(seed=1), headers=headers), 409, "fresh id")


async def test_wait_for_delivery_and_the_headers_travel(tmp_path: Path, tiny_bundle: Path) -> None:
    cloud = FakeCloud()
    async with (
        serving(cloud) as address,
        edge(tmp_path, tiny_bundle, cloud_address=address) as (client, service),
    ):
        response = await client.post(
            "/v1/frames",
            params={"wait": "delivered", "timeout": 10, "priority": 3},
            headers={"X-Source-Id": "camera-2", "X-Captured-At": "2026-11-23T14:00:00Z"},
            content=picture(),
        )
        assert response.status_code == 202 and response.json()["state"] == "delivered"
        assert list(cloud.frames) == [uuid.UUID(response.json()["id"])]
        status = (await client.get("/v1/status")).json()
        assert status["uplink"]["state"] == "connected" and status["spool"]["frames"] == 0
        assert not service.waiting._waiters
        text = (await client.get("/metrics")).text
        assert 'aeic_edge_acks_total{status="stored"} 1.0' in text
        assert 'aeic_edge_stage_seconds_count{stage="ship"} 1.0' in text


async def test_a_source_name_may_be_any_unicode_text(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle) as (client, service):
        name = "D\u00e4cher \u2603"
        posted = await client.post("/v1/frames", headers={b"X-Source-Id": name.encode()}, content=picture())
        assert posted.status_code == 202
        (record,) = service.spool.lease(5)
        assert record.source_id == name


async def test_the_status_shows_a_cloud_that_is_down_and_the_frame_is_kept(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle, cloud_address="127.0.0.1:1") as (client, service):
        posting = asyncio.create_task(client.post("/v1/frames?wait=delivered&timeout=0.3", content=picture()))
        await until(lambda: service.spool.pending_frames == 1)
        assert not posting.done()  # it waits for the delivery, and not without end
        assert (await posting).json()["state"] == "spooled"
        status = (await client.get("/v1/status")).json()
        assert status["uplink"]["state"] == "unreachable" and "127.0.0.1:1" in status["uplink"]["cloud"]
        assert status["spool"]["frames"] == 1
        assert (await client.get("/readyz")).status_code == 200  # the edge itself is well


async def test_full_spool_is_507(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle, spool_max_bytes=65536) as (client, service):
        assert (await client.post("/v1/frames", content=picture())).status_code == 202
        await asyncio.wrap_future(service.spool.put(new_record(size=65536 - service.spool.pending_bytes - 400)))
        response = await client.post("/v1/frames", content=picture())
        is_problem(response, 507, "AEIC_EDGE_SPOOL_MAX_BYTES")
        assert response.headers["retry-after"]


async def test_too_many_at_once_get_429_while_the_encoder_is_at_work(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with edge(tmp_path, tiny_bundle, encode_queue_frames=2, encode_workers=1) as (client, service):
        encode, go = service.encoder.encode, threading.Event()

        def held(*args: Any, **kw: Any) -> Any:
            assert go.wait(20)
            return encode(*args, **kw)

        monkeypatch.setattr(service.encoder, "encode", held)
        posts = [asyncio.create_task(client.post("/v1/frames", content=picture())) for _ in range(30)]
        await until(lambda: sum(post.done() for post in posts) == 27)
        refused = [post.result() for post in posts if post.done()]
        assert {response.status_code for response in refused} == {429}
        is_problem(refused[0], 429, "try again")
        assert int(refused[0].headers["retry-after"]) >= 1
        go.set()
        answers = await asyncio.gather(*posts)
        assert [response.status_code for response in answers].count(202) == 3
        assert service.queue.pending == 0


@pytest.mark.perf
async def test_too_many_at_once_get_429_at_once(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with edge(tmp_path, tiny_bundle, encode_queue_frames=2, encode_workers=1) as (client, service):
        encode = service.encoder.encode

        def slow(*args: Any, **kw: Any) -> Any:
            time.sleep(0.1)
            return encode(*args, **kw)

        monkeypatch.setattr(service.encoder, "encode", slow)

        async def timed() -> tuple[int, float]:
            begin = time.monotonic()
            response = await client.post("/v1/frames", content=picture())
            return response.status_code, time.monotonic() - begin

        answers = await asyncio.gather(*(timed() for _ in range(30)))
        assert max(seconds for status, seconds in answers if status == 202) < 1.0
        assert max(seconds for status, seconds in answers if status == 429) < 0.25


async def test_an_internal_error_is_500_without_details(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with edge(tmp_path, tiny_bundle) as (client, service):

        def broken(*args: Any, **kw: Any) -> Any:
            raise RuntimeError("secret path /srv/x")

        monkeypatch.setattr(service.encoder, "encode", broken)
        response = await client.post("/v1/frames", content=picture())
        is_problem(response, 500)
        assert "secret" not in response.text


async def test_answers_have_the_form_that_is_declared(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle) as (client, _):
        posted = [await client.post(f"/v1/frames?wait={wait}", content=picture()) for wait in ("received", "spooled")]
        for answer in posted:
            assert answer.status_code == 202
            schemas.PostedBody.model_validate_json(answer.content)
        for path, model in (
            (f"/v1/frames/{posted[1].json()['id']}", schemas.FrameBody),
            ("/v1/status", schemas.StatusBody),
            ("/healthz", schemas.LiveBody),
            ("/readyz", schemas.ReadyBody),
        ):
            answer = await client.get(path)
            assert answer.status_code == 200, answer.text
            model.model_validate_json(answer.content)
        described = (await client.get("/openapi.json")).json()
        for path in ("/v1/frames/{id}", "/v1/status", "/healthz", "/readyz"):
            declared = described["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            assert declared.keys() == {"$ref"}, path


async def test_openapi_describes_the_body_and_the_problems(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle) as (client, _):
        api = (await client.get("/openapi.json")).json()
        post = api["paths"]["/v1/frames"]["post"]
        assert "image/jpeg" in post["requestBody"]["content"]
        assert {"202", "409", "413", "415", "422", "429", "507"} <= set(post["responses"])
        for status, answer in post["responses"].items():
            (content,) = answer["content"].values()
            assert status in ("202", "default") or content["example"]["status"] == int(status)
        assert {p["name"] for p in post["parameters"]} >= {"rate", "max_bytes", "priority", "wait", "timeout"}
