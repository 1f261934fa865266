"""Originals that come in pieces: what is taken, what is stored, and how much memory they may hold."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.grpc_api import originals
from cloud_decoder.http_api import schemas
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.store.requests import new_request_id
from cloud_decoder.store.store import (
    NewRequest,
    RequestKind,
    RequestState,
    StoredRequest,
)
from tests.support.frames import MakeFrame
from tests.support.requests import Box, asked, ended, jpeg, new_request, piece_of
from tests.support.waiting import until

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
            (b"<!doctype html><title>x</title>" * 9, {}, "web page"),
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


async def test_a_file_of_a_request_that_has_ended_meanwhile_is_not_sent_to_its_end(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(originals, "CHECK_SECONDS", 0.0)
    async with asked(decoder, make_frame, tmp_path) as (cloud, http, parent), Box(cloud.grpc) as box:
        await box.greet(bundle)
        await http.post(f"/v1/frames/{parent}/requests", json=ORIGINAL)
        id, data = (await box.request()).id, jpeg()
        assert (await box.piece(id, data, 0, 100)).received_bytes == 100
        with monkeypatch.context() as broken:
            broken.setattr(cloud.store.requests, "get", failing)
            assert (await box.piece(id, data, 100, 100)).received_bytes == 200, "a store that fails ends nothing"
        assert cloud.store.retention.delete("", parent, int(time.time() * 1000))  # as another process does it
        assert (await box.piece(id, data, 200, 100)).unwanted
        assert (await box.piece(id, data, 200)).unwanted
        assert not cloud.ingest._originals._arriving and not cloud.ingest._originals._held.held


def failing(*_: Any) -> Any:
    raise StoreUnavailable("its disk is full")


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
    taken = originals.OriginalAssembler(
        store, cast(Any, None), dispatch, max_bytes=1 << 20, max_pixels=1 << 20, shared=True
    )

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
