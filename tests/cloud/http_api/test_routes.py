"""The HTTP API in this process: requests are answered, and hostile ones do no harm."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.service import Cloud
from cloud_decoder.store.schema import frames
from tests.support.cloud.cloud import FakeGenerator, jobs_of, running_cloud
from tests.support.frames import MakeFrame, new_frame, stored_frame


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@contextlib.asynccontextmanager
async def one_unasked_frame(
    decoder: Decoder, frame: bytes, folder: Path
) -> AsyncIterator[tuple[Cloud, httpx.AsyncClient, str]]:
    """A cloud that decodes only what is asked for, a client of it, and where the picture of its only frame is."""
    new = new_frame(frame, wanted=False)
    async with running_cloud(decoder, folder, eager="none") as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        cloud.store.frames.add([new], time.time())
        yield cloud, http, f"/v1/frames/{new.id}/image"


async def test_a_frame_from_its_arrival_to_its_picture(decoder: Decoder, make_frame: MakeFrame, tmp_path: Path) -> None:
    data, id = make_frame(1), uuid4()

    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        late = asyncio.create_task(http.get(f"/v1/frames/{id}/image?wait=10"))  # before it has arrived
        await asyncio.sleep(0.1)
        new = new_frame(data, id)
        cloud.store.frames.add([new], time.time())
        cloud.commits.announce([new])
        answer = await late
        assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
        assert (pixels(answer.content) == decoder.decode([data])[0]).all()
        assert "immutable" in answer.headers["cache-control"]
        again = await http.get(f"/v1/frames/{id}/image", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304 and not again.content
        for format in ("webp", "jpeg", "avif"):
            small = await http.get(f"/v1/frames/{id}/image?format={format}&width=32")
            assert small.headers["content-type"] == f"image/{format}" and pixels(small.content).shape == (24, 32, 3)
        frame = (await http.get(f"/v1/frames/{id}")).json()
        assert frame["state"] == "done" and frame["bytes"] == len(data) and frame["source"] == "box-1"
        assert frame["bpp"] == pytest.approx(8 * len(data) / (128 * 96), abs=1e-5)
        assert (await http.get(f"/v1/frames/{id}/bitstream")).content == data
        assert (await http.get("/v1/frames")).json()["frames"][0]["id"] == str(id)
        assert (await http.get("/v1/status")).json()["frames"]["done"] == 1
        for path in ("/healthz", "/readyz", "/metrics", "/", "/viewer/app.js", "/openapi.json"):
            assert (await http.get(path)).status_code == 200, path


async def test_a_picture_evicted_from_the_cache_is_decoded_again(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with one_unasked_frame(decoder, make_frame(2), tmp_path) as (cloud, http, url):
        assert (await http.get(url)).status_code == 202
        first = await http.get(url + "?wait=10")
        (file,) = (tmp_path / "cache").glob("??/*png")
        file.write_bytes(b"what a broken disk gives back")
        second = await http.get(url + "?wait=10")
        assert first.content == second.content
        assert cloud.store.frames.counts()["done"] == 1


async def test_formats_and_conditional_requests_of_clients(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with one_unasked_frame(decoder, make_frame(1), tmp_path) as (_, http, url):
        assert (await http.get(url, headers={"If-None-Match": "*"})).status_code == 202  # there is none yet
        whole = await http.get(url + "?wait=10")
        head = await http.head(url)
        assert head.status_code == 200 and not head.content
        assert head.headers["content-length"] == str(len(whole.content))
        assert head.headers["etag"] == whole.headers["etag"]
        for given in ("*", whole.headers["etag"]):
            assert (await http.get(url, headers={"If-None-Match": given})).status_code == 304
        bitstream = url.replace("image", "bitstream")
        tag = (await http.head(bitstream)).headers["etag"]
        for given, status in (("*", 304), (tag, 304), (f'"other", {tag}', 304), ('"other"', 200)):
            answer = await http.get(bitstream, headers={"If-None-Match": given})
            assert (answer.status_code, answer.headers["etag"]) == (status, tag), given
            assert bool(answer.content) == (status == 200)
        jpeg, png = await http.get(url + "?format=JPG"), await http.get(url + "?format=PNG")
        assert jpeg.headers["content-type"] == "image/jpeg" and png.content == whole.content
        assert (await http.head("/healthz")).status_code == 200
        wrong = await http.get(url + "?width=1")
        assert wrong.status_code == 400 and wrong.json()["type"] == "urn:aeic:invalid-parameter"
        assert (await http.get("/v2")).json()["type"] == "urn:aeic:not-found"


async def test_accept_decides_where_the_url_does_not(decoder: Decoder, make_frame: MakeFrame, tmp_path: Path) -> None:
    data = make_frame(1)
    async with one_unasked_frame(decoder, data, tmp_path) as (_, http, url):
        plain = await http.get(url + "?wait=10")
        assert plain.headers["content-type"] == "image/png" and "accept" in plain.headers["vary"].lower()
        webp = await http.get(url, headers={"Accept": "image/webp"})
        assert webp.headers["content-type"] == "image/webp" and webp.headers["etag"] != plain.headers["etag"]
        same = {"If-None-Match": webp.headers["etag"]}
        again = await http.get(url, headers=same | {"Accept": "image/webp"})
        assert again.status_code == 304 and "accept" in again.headers["vary"].lower()
        assert (await http.get(url, headers=same)).status_code == 200
        named = await http.get(url + "?format=jpeg", headers={"Accept": "text/html"})
        assert named.headers["content-type"] == "image/jpeg" and "vary" not in named.headers
        decoded = await http.post("/v1/decode", content=data, headers={"Accept": "image/avif"})
        assert decoded.headers["content-type"] == "image/avif"
        for refused in (
            await http.get(url, headers={"Accept": "text/html"}),
            await http.get(url.replace("image", "composed"), headers={"Accept": "text/html"}),
            await http.post("/v1/decode", content=data, headers={"Accept": "text/html"}),
        ):
            assert refused.status_code == 406 and refused.json()["type"] == "urn:aeic:not-acceptable"


async def test_ranges_are_not_served_and_that_is_said(decoder: Decoder, make_frame: MakeFrame, tmp_path: Path) -> None:
    async with one_unasked_frame(decoder, make_frame(1), tmp_path) as (_, http, url):
        for path in (url + "?wait=10", url.replace("image", "bitstream")):
            whole = await http.get(path)
            part = await http.get(path, headers={"Range": "bytes=0-9"})
            assert (part.status_code, part.headers["accept-ranges"]) == (200, "none")
            assert part.content == whole.content and "content-range" not in part.headers


async def test_decode_and_its_refusals(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path
) -> None:
    data = make_frame(1)
    foreign = bytearray(data)
    foreign[6] ^= 1
    flipped = bytearray(data)
    flipped[-1] ^= 1

    options = {"max_bitstream_bytes": 4096, "max_queue": 2, "body_timeout_seconds": 0.3}
    async with running_cloud(decoder, tmp_path, **options) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        answer = await http.post("/v1/decode?format=png", content=data)
        assert (pixels(answer.content) == decoder.decode([data])[0]).all()
        assert "synthesis;dur=" in answer.headers["server-timing"]
        refused = {
            422: [b"", b"hello, I am a text file", data[:9], data[:40], bytes(flipped)],
            409: [bytes(foreign)],
            413: [bytes(5000)],
        }
        for status, bodies in refused.items():
            for body in bodies:
                answer = await http.post("/v1/decode", content=body)
                assert answer.status_code == status, (body[:20], answer.text)
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["status"] == status and answer.json()["detail"]

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield bytes(1000)

        async def stuck() -> AsyncIterator[bytes]:
            yield b"\xae"
            await asyncio.sleep(0.8)

        for stream, status in ((endless(), 413), (stuck(), 408)):
            with contextlib.suppress(httpx.TransportError):  # the service may close the connection first
                assert (await http.post("/v1/decode", content=stream)).status_code == status
        assert (await http.post("/v1/decode?format=exe", content=data)).status_code == 400
        assert (await http.post("/v1/decode?width=1", content=data)).status_code == 400

        generator.gate.clear()
        waiting = [asyncio.create_task(http.post("/v1/decode", content=make_frame(i))) for i in (10, 11)]
        await asyncio.sleep(0.3)
        full = await http.post("/v1/decode", content=make_frame(12))
        assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
        waiting[1].cancel()  # the client hangs up: its work leaves the queue
        for _ in range(100):
            await asyncio.sleep(0.02)
            if len(jobs_of(cloud)) == 1:
                break
        assert len(jobs_of(cloud)) == 1
        generator.gate.set()
        assert (await waiting[0]).status_code == 200


async def test_hostile_ids_and_queries(decoder: Decoder, tmp_path: Path) -> None:
    ids = [
        "..%2f..%2fetc%2fpasswd",
        "%00",
        "0" * 10_000,
        "{00000000-0000-0000-0000-000000000000}",
        "urn:uuid:00000000-0000-0000-0000-000000000000",
        "00000000000000000000000000000000",
        "0198c0de-0000-7000-8000-00000000000g",
        "1 OR 1=1",
        "<script>",
    ]

    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        for id in ids:
            for tail in ("", "/image", "/bitstream"):
                answer = await http.get(f"/v1/frames/{id}{tail}")
                assert answer.status_code in (400, 404), (id, answer.status_code)
                assert "passwd" not in answer.text
        unknown = uuid4()
        for tail in ("", "/image?wait=0.1", "/bitstream"):
            assert (await http.get(f"/v1/frames/{unknown}{tail}")).status_code == 404
        queries = ["limit=0", "limit=x", "cursor=-1", "cursor=1e9", "state=gone", "rate=99", "since=never"]
        queries += [
            "since=0001-01-01T00:00:00Z",
            "until=9999-12-31T23:59:59Z",
            f"source={'x' * 200}",
            "cursor=" + "9" * 18,
        ]
        for query in queries:
            assert (await http.get(f"/v1/frames?{query}")).status_code in (200, 400), query
        for query in ("wait=-1", "wait=nan", "wait=inf", "format=../../x", "width=99999"):
            assert (await http.get(f"/v1/frames/{unknown}/image?{query}")).status_code in (400, 404), query
        for name in ("..%2fapi.py", "api.py", "%2e%2e/api.py"):
            assert (await http.get(f"/viewer/{name}")).status_code == 404
        with contextlib.suppress(httpx.TransportError):  # closed on, which is as good
            assert (await http.get("/", headers={"X-Long": "x" * 600_000})).status_code in (400, 431)
        assert (await http.request("PATCH", "/v1/frames")).status_code == 405
        assert (await http.get("/readyz")).status_code == 200


async def test_fuzzed_bitstreams_never_make_a_server_error(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    chance = random.Random(7)
    good = [make_frame(i, 64, 64) for i in range(4)]

    def mutate() -> bytes:
        data = bytearray(chance.choice(good))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        if chance.random() < 0.1:
            data += chance.randbytes(chance.randrange(50))
        return bytes(data)

    options = {"max_pixels": 512 * 512}
    async with running_cloud(decoder, tmp_path, **options) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        for _ in range(80):
            answer = await http.post("/v1/decode", content=mutate())
            assert answer.status_code in (200, 409, 413, 422), answer.text


async def test_tenants_do_not_see_each_other(decoder: Decoder, make_frame: MakeFrame, tmp_path: Path) -> None:
    new = new_frame(make_frame(1), tenant="acme")

    tokens = "acme:token-of-acme,other:token-of-other"
    async with running_cloud(decoder, tmp_path, tokens=tokens) as cloud:
        cloud.store.frames.add([new], time.time())
        for token, status in (("token-of-acme", 200), ("token-of-other", 404), ("wrong", 401), ("", 401)):
            header = {"Authorization": f"Bearer {token}"} if token else {}
            async with httpx.AsyncClient(base_url=cloud.http, headers=header) as http:
                for tail in ("", "/bitstream", f"/image?wait={10 if status == 200 else 0.1}"):
                    answer = await http.get(f"/v1/frames/{new.id}{tail}")
                    assert answer.status_code == status, (token, tail)
                listed = await http.get("/v1/frames")
                if listed.status_code == 200:
                    assert len(listed.json()["frames"]) == (token == "token-of-acme")
                if token == "token-of-acme":
                    assert "private" in (await http.get(f"/v1/frames/{new.id}/image")).headers["cache-control"]


async def test_a_damaged_frame_is_shown_in_quarantine_with_its_reason(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    flipped = bytearray(make_frame(1))
    flipped[-2] ^= 8
    new = new_frame(bytes(flipped))

    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        cloud.store.frames.add([new], time.time())
        cloud.backend.wake()
        answer = await http.get(f"/v1/frames/{new.id}/image?wait=10")
        assert answer.status_code == 422  # the decoder reports it, or the store a moment later
        for _ in range(100):
            frame = (await http.get(f"/v1/frames/{new.id}")).json()
            if frame["state"] == "failed":
                break
            await asyncio.sleep(0.02)
        assert frame["state"] == "failed" and "Damaged" in frame["reason"]
        assert (await http.get("/v1/frames?state=failed")).json()["frames"][0]["id"] == str(new.id)


async def test_pages_follow_the_cursor(decoder: Decoder, make_frame: MakeFrame, tmp_path: Path) -> None:
    async with (
        running_cloud(decoder, tmp_path, eager="none") as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
    ):
        cloud.store.frames.add([new_frame(make_frame(i, 64, 64), wanted=False) for i in range(7)], time.time())
        seen: list[str] = []
        cursor = ""
        while cursor is not None:
            page = (await http.get("/v1/frames?limit=3" + (f"&cursor={cursor}" if cursor else ""))).json()
            seen += [frame["id"] for frame in page["frames"]]
            cursor = page["next_cursor"]
        assert len(seen) == len(set(seen)) == 7
        linked, path = [], "/v1/frames?source=box-1&limit=3"
        while path:
            answer = await http.get(path)
            page = answer.json()
            linked += [frame["id"] for frame in page["frames"]]
            path = page["next"]
            assert answer.headers.get("link") == (f'<{path}>; rel="next"' if path else None)
            assert path is None or "source=box-1" in path
        assert linked == seen


async def test_sources_with_their_newest_frames(decoder: Decoder, make_frame: MakeFrame, tmp_path: Path) -> None:
    async with (
        running_cloud(decoder, tmp_path, eager="none") as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
    ):
        rows = [new_frame(make_frame(i), source=f"mast-{i % 2}", wanted=False) for i in range(4)]
        cloud.store.frames.add(rows, time.time())
        plain = (await http.get("/v1/sources")).json()["sources"]
        assert [one["newest"] for one in plain] == [None, None]
        found = (await http.get("/v1/sources?newest=true")).json()["sources"]
        assert {one["source"]: one["newest"]["id"] for one in found} == {
            "mast-0": str(rows[2].id),
            "mast-1": str(rows[3].id),
        }
        assert found[0]["newest"] == (await http.get(f"/v1/frames/{found[0]['newest']['id']}")).json()


async def test_events_tell_of_new_frames(decoder: Decoder, make_frame: MakeFrame, tmp_path: Path) -> None:
    new = new_frame(make_frame(1))

    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        async with asyncio.timeout(15), http.stream("GET", "/v1/events") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "retry: 2000"
            cloud.store.frames.add([new], time.time())
            cloud.commits.announce([new])
            seen = []
            async for line in lines:
                if line.startswith("event: "):
                    seen.append(line[7:])
                if line.startswith("data: "):
                    assert str(new.id) in line
                if seen[-1:] == ["done"] and line.startswith("data: "):
                    break
            assert seen == ["received", "done"]
        assert (await http.get("/v1/sources")).json()["sources"][0]["source"] == "box-1"


async def test_ids_in_capitals_are_the_same_frame(decoder: Decoder, make_frame: MakeFrame, tmp_path: Path) -> None:
    new = new_frame(make_frame(1), UUID("0198C0DE-ABCD-7000-8000-00000000ABCD"))

    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        cloud.store.frames.add([new], time.time())
        assert (await http.get(f"/v1/frames/{str(new.id).upper()}")).status_code == 200


async def test_bytes_that_the_disk_has_changed_are_not_served(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    new = new_frame(make_frame(1), wanted=False)
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        cloud.store.frames.add([new], time.time())
        assert (await http.get(f"/v1/frames/{new.id}/bitstream")).content == new.bitstream
        changed = bytes([new.bitstream[0] ^ 1]) + new.bitstream[1:]
        with cloud.store.database.write() as connection:
            connection.execute(sa.update(frames).values(bitstream=changed))
        answer = await http.get(f"/v1/frames/{new.id}/bitstream")
        assert answer.status_code == 500 and answer.json()["type"] == "urn:aeic:stored-damage"
        assert "etag" not in answer.headers and "restore" in answer.json()["detail"]
        assert (await http.get(f"/v1/frames/{new.id}/image?wait=10")).status_code == 422


async def test_the_metrics_tell_how_long_a_source_has_been_silent(decoder: Decoder, tmp_path: Path) -> None:
    async with running_cloud(decoder, tmp_path, eager="none") as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        cloud.store.frames.add([stored_frame(source="mast-7", wanted=False)], time.time() - 120)
        page = (await http.get("/metrics")).text
        found = re.search(r'aeic_cloud_source_silent_seconds\{source="mast-7",tenant=""\} ([\d.]+)', page)
        assert found and 115 < float(found[1]) < 180
