"""The HTTP API in process: what is answered to good pictures, bad pictures, odd requests and too many requests."""

from __future__ import annotations

import asyncio
import io
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from aeic.bitstream import Frame
from tests.edge.conftest import picture
from tests.edge.spool.test_spool import frame
from tests.support.edge_fakes import FakeCloud, serving
from tests.support.in_process import edge, is_problem, run


def test_a_picture_is_encoded_and_spooled(tmp_path, tiny_bundle):
    async def scenario() -> None:
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

    run(scenario)


def test_odd_requests(tmp_path, tiny_bundle):
    good = picture()

    async def scenario() -> None:
        async with edge(tmp_path, tiny_bundle, max_body_bytes=20_000) as (client, _):
            post = client.post
            is_problem(await post("/v1/frames", params={"rate": "r9"}, content=good), 400, "r1", "r2")
            is_problem(await post("/v1/frames", params={"max_bytes": "many"}, content=good), 422, "max_bytes")
            is_problem(await post("/v1/frames", params={"max_bytes": 10}, content=good), 400, "max_bytes")
            is_problem(await post("/v1/frames", params={"priority": -1}, content=good), 422, "priority")
            is_problem(await post("/v1/frames", params={"wait": "forever"}, content=good), 422, "wait")
            for key in ("1234", "../../x", "{" + str(uuid.uuid4()) + "}"):
                is_problem(await post("/v1/frames", headers={"Idempotency-Key": key}, content=good), 422, "uuid")
            for moment in ("yesterday", "-5", "99999-01-01", "9" * 30):
                is_problem(await post("/v1/frames", headers={"X-Captured-At": moment}, content=good), 422, "RFC 3339")
            for source in (b"roof\x01", b"\xff", b"a" * 129, "\U0001f4f7".encode() * 64):  # the cloud would reject them
                is_problem(await post("/v1/frames", headers={b"X-Source-Id": source}, content=good), 422, "X-Source-Id")
            is_problem(await post("/v1/frames", content=bytes(20_001)), 413, "AEIC_EDGE_MAX_BODY_BYTES")

            async def unstated() -> AsyncIterator[bytes]:
                for _ in range(30):
                    yield bytes(1000)

            is_problem(await post("/v1/frames", content=unstated()), 413, "20000")
            for ident in ("x", "1", "%00", "a" * 63, "..%2f..%2fetc"):
                response = await client.get(f"/v1/frames/{ident}")
                assert response.status_code in (404, 422) and response.headers["content-type"].startswith("app")
            is_problem(await client.get(f"/v1/frames/{uuid.uuid4()}"), 404, "no frame")
            is_problem(await client.get("/v2/none"), 404)
            is_problem(await client.put("/v1/frames"), 405)
            head = await client.head("/healthz")
            assert head.status_code == 200 and not head.content and int(head.headers["content-length"]) > 0

    run(scenario)


def test_rate_and_max_bytes(tmp_path, tiny_bundle):
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 384, 3), dtype=np.uint8)).save(noise, "PNG")

    async def scenario() -> None:
        async with edge(tmp_path, tiny_bundle) as (client, _):

            async def post(**encode_request: object) -> dict[str, Any]:
                response = await client.post("/v1/frames", params=encode_request, content=noise.getvalue())
                assert response.status_code == 202, response.text
                return response.json()

            low, high = await post(rate="r1"), await post(rate=1)
            assert (low["rate"], high["rate"]) == (0, 1) and low["bytes"] < high["bytes"]
            assert (await post(max_bytes=high["bytes"]))["rate"] == 1
            assert (await post(max_bytes=high["bytes"] - 1))["rate"] == 0
            assert (await post(max_bytes=100_000, rate="r1"))["rate"] == 0

    run(scenario)


def test_the_default_rate_follows_the_link(tmp_path, tiny_bundle):
    async def scenario() -> None:
        async with edge(tmp_path, tiny_bundle, target_age_seconds=0.2, cloud_address="127.0.0.1:1") as (
            client,
            service,
        ):
            service.rate_control.rate = service.rate_control._ceiling = 1
            assert (await client.post("/v1/frames", content=picture())).json()["rate"] == 1
            await asyncio.sleep(1.6)  # the cloud is down and the frame grows old
            assert (await client.post("/v1/frames", content=picture())).json()["rate"] == 0
            assert (await client.post("/v1/frames?rate=1", content=picture())).json()["rate"] == 1
            assert (await client.get("/v1/status")).json()["default_rate"] == 0

    run(scenario)


def test_posting_twice_under_one_key_makes_one_frame(tmp_path, tiny_bundle):
    key = str(uuid.uuid4())

    async def scenario() -> None:
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

    run(scenario)


def test_wait_for_delivery_and_the_headers_travel(tmp_path, tiny_bundle):
    async def scenario() -> None:
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

    run(scenario)


def test_a_source_may_be_called_what_its_people_call_it(tmp_path, tiny_bundle):
    async def scenario() -> None:
        async with edge(tmp_path, tiny_bundle) as (client, service):
            name = "D\u00e4cher \u2603"
            posted = await client.post("/v1/frames", headers={b"X-Source-Id": name.encode()}, content=picture())
            assert posted.status_code == 202
            (record,) = service.spool.lease(5)
            assert record.source_id == name

    run(scenario)


def test_a_cloud_that_is_down_is_told_and_the_frame_kept(tmp_path, tiny_bundle):
    async def scenario() -> None:
        async with edge(tmp_path, tiny_bundle, cloud_address="127.0.0.1:1") as (client, _):
            begin = time.monotonic()
            response = await client.post("/v1/frames?wait=delivered&timeout=0.3", content=picture())
            assert response.json()["state"] == "spooled" and 0.25 < time.monotonic() - begin < 3
            status = (await client.get("/v1/status")).json()
            assert status["uplink"]["state"] == "unreachable" and "127.0.0.1:1" in status["uplink"]["cloud"]
            assert status["spool"]["frames"] == 1
            assert (await client.get("/readyz")).status_code == 200  # the edge itself is well

    run(scenario)


def test_full_spool_is_507(tmp_path, tiny_bundle):
    async def scenario() -> None:
        async with edge(tmp_path, tiny_bundle, spool_max_bytes=65536) as (client, service):
            assert (await client.post("/v1/frames", content=picture())).status_code == 202
            await asyncio.wrap_future(service.spool.put(frame(size=65536 - service.spool.pending_bytes - 400)))
            response = await client.post("/v1/frames", content=picture())
            is_problem(response, 507, "AEIC_EDGE_SPOOL_MAX_BYTES")
            assert response.headers["retry-after"]

    run(scenario)


def test_too_many_at_once_get_429_at_once(tmp_path, tiny_bundle):
    async def scenario() -> None:
        async with edge(tmp_path, tiny_bundle, encode_queue_frames=2, encode_workers=1) as (client, service):
            slow = service.encoder.encode

            def encode(*args: Any, **kw: Any) -> Any:
                time.sleep(0.1)
                return slow(*args, **kw)

            service.encoder.encode = encode  # type: ignore[method-assign]

            async def timed() -> tuple[httpx.Response, float]:
                begin = time.monotonic()
                response = await client.post("/v1/frames", content=picture())
                return response, time.monotonic() - begin

            answers = await asyncio.gather(*(timed() for _ in range(30)))
            taken = [seconds for response, seconds in answers if response.status_code == 202]
            refused = [(response, seconds) for response, seconds in answers if response.status_code == 429]
            assert len(taken) == 3 and len(refused) == 27
            assert max(taken) < 1.0 and max(seconds for _, seconds in refused) < 0.25
            is_problem(refused[0][0], 429, "come again")
            assert int(refused[0][0].headers["retry-after"]) >= 1
            assert service.queue.pending == 0

    run(scenario)


def test_an_error_of_ours_is_500_without_details(tmp_path, tiny_bundle):
    async def scenario() -> None:
        async with edge(tmp_path, tiny_bundle) as (client, service):

            def broken(*args: Any, **kw: Any) -> Any:
                raise RuntimeError("secret path /srv/x")

            service.encoder.encode = broken  # type: ignore[method-assign]
            response = await client.post("/v1/frames", content=picture())
            is_problem(response, 500)
            assert "secret" not in response.text

    run(scenario)


def test_openapi_describes_the_body_and_the_problems(tmp_path, tiny_bundle):
    async def scenario() -> None:
        async with edge(tmp_path, tiny_bundle) as (client, _):
            api = (await client.get("/openapi.json")).json()
            post = api["paths"]["/v1/frames"]["post"]
            assert "image/jpeg" in post["requestBody"]["content"]
            assert {"202", "409", "413", "415", "422", "429", "507"} <= set(post["responses"])
            for status, answer in post["responses"].items():
                (content,) = answer["content"].values()
                assert status == "202" or content["example"]["status"] == int(status)
            assert {p["name"] for p in post["parameters"]} >= {"rate", "max_bytes", "priority", "wait", "timeout"}

    run(scenario)
