"""Requests of a cloud at the box: answered once with a frame, or refused with the reason; frames are not harmed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aeic.v1 import ingest_pb2 as pb
from edge_encoder.answers.answerer import (
    File,
    Ignored,
    Interrupted,
    PictureRequest,
    RefusalReason,
    Refused,
    RequestKind,
)
from edge_encoder.answers.hourly_budget import PIECE_HEAD_BYTES, REQUEST_BYTES, bytes_in_pieces
from edge_encoder.errors import SpoolFull
from edge_encoder.service import EdgeService
from edge_encoder.spool.record import State
from tests.support.edge.fakes import FakeCloud, serving
from tests.support.edge.in_process import edge
from tests.support.pictures import picture
from tests.support.waiting import until

KEEP = {"originals_max_bytes": 1 << 20, "cloud_address": ""}


def request_id(number: int) -> uuid.UUID:
    return uuid.UUID(int=0x8 << 76 | 0x2 << 62 | number)


def ask(frame: uuid.UUID, number: int = 1, **changes: Any) -> PictureRequest:
    values: dict[str, Any] = {"kind": RequestKind.REGION, "region": (8, 8, 48, 32), "max_bytes": 4000, "seconds": 20.0}
    return PictureRequest(request_id(number), frame, **values | changes)


@contextlib.asynccontextmanager
async def box(folder: Path, bundle: Path, **changes: Any) -> AsyncIterator[tuple[EdgeService, uuid.UUID]]:
    """An edge that has sent a picture of 128x96."""
    async with edge(folder, bundle, **KEEP | changes) as (client, service):
        posted = await client.post("/v1/frames", content=picture(128, 96), headers={"X-Source-Id": "gate"})
        yield service, uuid.UUID(posted.json()["id"])


async def answer(service: EdgeService, asked: PictureRequest, sent: list[bytes] | None = None) -> str:
    """ "answered", the reason of the refusal, or "ignored". Files are `sent`."""
    assert service.uplink._context.callbacks.answer is not None

    async def send(file: File) -> None:
        file.spend(len(file.data))
        (sent if sent is not None else []).append(file.data)

    try:
        await service.uplink._context.callbacks.answer(asked, send)
    except Refused as refused:
        assert str(refused)
        return refused.reason.value
    except Ignored:
        return "ignored"
    return "answered"


async def test_a_region_is_cropped_encoded_and_spooled_once(tiny_bundle: Path, tmp_path: Path) -> None:
    async with box(tmp_path, tiny_bundle) as (service, frame):
        before = service.spool.pending_frames
        for _ in range(2):
            assert await answer(service, ask(frame)) == "answered"
        assert service.spool.pending_frames == before + 1
        first = service.spool.lease(1)[0]  # it goes ahead of the frame that waits
        assert (first.id, first.source_id, first.priority) == (request_id(1), "gate", 255)
        assert (first.original_width, first.original_height) == (48, 32) and len(first.data) <= 4000
        with Image.open(io.BytesIO(picture(128, 96))) as whole:
            crop = np.asarray(whole.convert("RGB"))[8:40, 8:56]
        assert first.data == service.encoder.encode(np.ascontiguousarray(crop), max_bytes=4000).data
        assert await answer(service, ask(frame, 2, kind=RequestKind.BETTER)) == "answered"
    async with edge(tmp_path, tiny_bundle, **KEEP) as (_, service):  # originals and answers are here after a restart
        assert await answer(service, ask(frame)) == "answered" and service.spool.pending_frames == before + 2
        assert await answer(service, ask(frame, 3)) == "answered"


@pytest.mark.parametrize(
    ("changed", "settings", "reason"),
    [
        ({"frame_id": uuid.uuid4()}, {}, RefusalReason.GONE),
        ({"kind": RequestKind.ORIGINAL, "frame_id": uuid.uuid4()}, {}, RefusalReason.GONE),
        ({"kind": RequestKind.ORIGINAL}, {"request_original_max_bytes": 0}, RefusalReason.FORBIDDEN),
        ({"kind": RequestKind.ORIGINAL}, {"request_original_max_bytes": 3999}, RefusalReason.OVER_BUDGET),
        ({"kind": RequestKind.ORIGINAL}, {"request_bytes_per_hour": 3999}, RefusalReason.OVER_BUDGET),
        ({"kind": RequestKind.ORIGINAL, "region": (100, 8, 48, 32)}, {}, RefusalReason.UNSUPPORTED),
        ({"kind": RequestKind.ORIGINAL, "max_bytes": 99}, {}, RefusalReason.OVER_BUDGET),
        ({"kind": RequestKind.ORIGINAL, "seconds": 0.0}, {}, RefusalReason.EXPIRED),
        ({"kind": RequestKind.NOW}, {}, RefusalReason.UNSUPPORTED),
        ({"kind": RequestKind.UNKNOWN}, {}, RefusalReason.UNSUPPORTED),
        ({"region": (100, 8, 48, 32)}, {}, RefusalReason.UNSUPPORTED),
        ({"region": (0, 0, 4_000_000_000, 4_000_000_000)}, {}, RefusalReason.UNSUPPORTED),
        ({"region": (0, 0, 0, 0)}, {}, RefusalReason.UNSUPPORTED),
        ({"max_bytes": 5001}, {"request_max_bytes": 5000}, RefusalReason.OVER_BUDGET),
        ({}, {"request_bytes_per_hour": 3999}, RefusalReason.OVER_BUDGET),
        ({"max_bytes": 10}, {}, RefusalReason.OVER_BUDGET),
        ({"seconds": 0.0}, {}, RefusalReason.EXPIRED),
    ],
)
async def test_each_refusal_has_its_reason(
    tiny_bundle: Path, tmp_path: Path, changed: dict[str, Any], settings: dict[str, Any], reason: RefusalReason
) -> None:
    async with box(tmp_path, tiny_bundle, **settings) as (service, frame):
        before = service.spool.pending_frames
        assert (
            await answer(
                service, ask(changed.get("frame_id", frame), **{k: v for k, v in changed.items() if k != "frame_id"})
            )
            == reason
        )
        assert service.spool.pending_frames == before
        assert service.metrics.registry.get_sample_value("aeic_edge_requests_total", {"outcome": reason.value}) == 1


async def test_the_hour_is_charged_with_what_was_sent(tiny_bundle: Path, tmp_path: Path) -> None:
    async with box(tmp_path, tiny_bundle, request_bytes_per_hour=5000) as (service, frame):
        assert await answer(service, ask(frame, 1, max_bytes=10)) == "over-budget"  # nothing fits
        better = {"kind": RequestKind.BETTER, "max_bytes": 1000}
        outcomes = [await answer(service, ask(frame, number, **better)) for number in range(2, 40)]
        sizes = [len(record.data) for record in service.spool.lease(99) if record.id.version == 8]
        assert outcomes == ["answered"] * len(sizes) + ["over-budget"] * (38 - len(sizes))
        cost = max(sizes[0], REQUEST_BYTES)
        assert sizes[0] * len(sizes) <= 5000 and len(sizes) == 1 + (4000 - REQUEST_BYTES) // cost


async def test_a_box_that_keeps_no_originals_any_more_deletes_them(tiny_bundle: Path, tmp_path: Path) -> None:
    async with box(tmp_path, tiny_bundle) as (service, _):
        assert service.ring is not None and len(service.ring) == 1
        folder = service.settings.data_dir / "originals"
    async with edge(tmp_path, tiny_bundle, cloud_address="", originals_max_bytes=0) as (_, service):
        assert service.ring is None and folder.is_dir() and not list(folder.iterdir())


async def test_better_quality_that_is_none_is_refused_and_costs_no_answer(tiny_bundle: Path, tmp_path: Path) -> None:
    async with edge(tmp_path, tiny_bundle, **KEEP) as (client, service):
        content = picture(128, 96)
        posted = (await client.post("/v1/frames?rate=0", content=content)).json()
        top = len(service.encoder.bundle.rates) - 1
        best = (await client.post(f"/v1/frames?rate={top}", content=content)).json()
        before = service.spool.pending_frames
        small, largest = (service.spool.get(uuid.UUID(one["id"])) for one in (posted, best))
        assert small is not None and largest is not None and small.size < largest.size
        for number, frame, max_bytes, reason in (
            (1, small, small.size, RefusalReason.OVER_BUDGET),
            (2, small, small.size + 1, RefusalReason.OVER_BUDGET),
            (3, largest, 4000, RefusalReason.UNSUPPORTED),
        ):
            asked = ask(frame.id, number, kind=RequestKind.BETTER, max_bytes=max_bytes)
            assert await answer(service, asked) == reason and service.spool.pending_frames == before
        assert await answer(service, ask(small.id, 4, kind=RequestKind.BETTER, max_bytes=4000)) == "answered"
        found = service.spool.get(request_id(4))
        assert found is not None and found.size == largest.size


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-lowest-priority"])
async def test_an_answer_never_takes_the_place_of_a_frame(tiny_bundle: Path, tmp_path: Path, policy: str) -> None:
    full = {"spool_max_bytes": 1 << 16, "spool_full_policy": policy}
    async with box(tmp_path, tiny_bundle, **full) as (service, frame):
        await service.submitter.take(picture(128, 96, seed=2), _request())
        waiting = [record.id for record in service.spool.lease(99)]
        service.spool.release(waiting)
        room = service.spool.pending_bytes
        object.__setattr__(service.spool._frame_table, "limits", _limits(room, policy))
        assert await answer(service, ask(frame, seconds=1.0)) == "expired"
        for ident in waiting:
            entry = service.spool.get(ident)
            assert entry is not None and entry.state is State.SPOOLED


async def test_a_box_without_originals_takes_no_requests_and_old_clouds_send_none(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    cloud = FakeCloud()  # it answers as the release before: its Welcome has a window only
    async with serving(cloud) as address:
        for number, (changes, expected) in enumerate(
            [
                ({"originals_max_bytes": 0}, 0),
                ({"request_max_bytes": 0}, 0),
                ({}, 16384),
            ]
        ):
            async with box(tmp_path / str(number), tiny_bundle, **{"cloud_address": address} | changes) as (service, _):
                await until(lambda: service.spool.pending_frames == 0)
            assert cloud.hellos[-1].request_max_bytes == expected
    assert not list((tmp_path / "0").rglob("*.original")) and list((tmp_path / "2").rglob("*.original"))


def test_the_messages_of_the_release_before_are_a_part_of_these() -> None:
    """What an older peer does not know is an unknown field to it; it sees no frame, no hello and no answer."""
    response = pb.DeliverResponse(request=pb.Request(id=b"8" * 16))
    for known in ("welcome", "ack", "stored"):
        assert not response.HasField(known)
    assert pb.Hello(source_id="s").request_max_bytes == 0 and not pb.Welcome(window=1).sends_requests


def _request(**changes: Any) -> Any:
    from edge_encoder.submission.request import EncodeRequest

    return EncodeRequest(source_id="gate", **changes)


def _limits(max_bytes: int, policy: Any) -> Any:
    from edge_encoder.spool.frame_table import SpoolLimits

    return SpoolLimits(max_bytes, policy)


async def test_a_full_spool_is_waited_for(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with box(tmp_path, tiny_bundle) as (service, frame):
        put, failures = service.spool.put, [SpoolFull("full"), SpoolFull("full")]

        def fails(*given: Any, **more: Any) -> Any:
            if failures:
                raise failures.pop()
            return put(*given, **more)

        monkeypatch.setattr(service.spool, "put", fails)
        task = asyncio.ensure_future(answer(service, ask(frame)))
        assert await task == "answered" and not failures


async def test_the_original_is_the_file_itself_where_it_fits_else_a_jpeg(tiny_bundle: Path, tmp_path: Path) -> None:
    async with box(tmp_path, tiny_bundle, request_bytes_per_hour=1 << 20) as (service, frame):
        before, sent = service.spool.pending_frames, list[bytes]()
        original = picture(128, 96)
        whole = {"kind": RequestKind.ORIGINAL, "region": (0, 0, 0, 0)}
        assert await answer(service, ask(frame, 1, **whole, max_bytes=len(original)), sent) == "answered"
        assert sent == [original]
        assert await answer(service, ask(frame, 2, **whole, max_bytes=len(original) - 1), sent) == "answered"
        assert len(sent[1]) < len(original) and sent[1][:3] == b"\xff\xd8\xff"
        assert await answer(service, ask(frame, 3, kind=RequestKind.ORIGINAL), sent) == "answered"
        with Image.open(io.BytesIO(sent[2])) as image:
            assert image.format == "JPEG" and image.size == (48, 32)
        assert service.spool.pending_frames == before, "a file is not spooled"
        assert service.uplink._context.callbacks.answer is not None
        with pytest.raises(Refused, match="does not take"):  # a cloud of before
            await service.uplink._context.callbacks.answer(ask(frame, 4, **whole), None)


async def test_an_original_is_charged_with_what_left_for_the_link(tiny_bundle: Path, tmp_path: Path) -> None:
    async with box(tmp_path, tiny_bundle, request_bytes_per_hour=5000) as (service, frame):
        assert service.uplink._context.callbacks.answer is not None

        async def breaks(file: File) -> None:
            file.spend(1000)
            raise Interrupted("the stream broke")

        for number in (1, 2):
            with pytest.raises(Interrupted):
                await service.uplink._context.callbacks.answer(
                    ask(frame, number, kind=RequestKind.ORIGINAL, max_bytes=3500), breaks
                )
        left = 3000 - 3 * PIECE_HEAD_BYTES  # of three pieces
        assert await answer(service, ask(frame, 3, kind=RequestKind.ORIGINAL, max_bytes=left + 1)) == "over-budget"
        left -= REQUEST_BYTES
        assert await answer(service, ask(frame, 4, kind=RequestKind.ORIGINAL, max_bytes=left + 1)) == "over-budget"
        left -= REQUEST_BYTES
        assert await answer(service, ask(frame, 5, kind=RequestKind.ORIGINAL, max_bytes=left)) == "answered"


async def test_a_restart_does_not_begin_the_hour_again(tiny_bundle: Path, tmp_path: Path) -> None:
    original = {"kind": RequestKind.ORIGINAL, "max_bytes": 3000}
    settings = KEEP | {"request_bytes_per_hour": 5000}
    async with box(tmp_path, tiny_bundle, request_bytes_per_hour=5000) as (service, frame):
        sent = list[bytes]()
        assert await answer(service, ask(frame, 1, **original), sent) == "answered"
        assert await answer(service, ask(uuid.uuid4(), 2)) == "gone"
    left = 5000 - max(len(sent[0]), REQUEST_BYTES)
    async with edge(tmp_path, tiny_bundle, **settings) as (_, service):
        assert await answer(service, ask(frame, 3, max_bytes=left + 1)) == "over-budget"
        assert await answer(service, ask(frame, 4, max_bytes=left - REQUEST_BYTES)) == "answered"
    for number in range(5, 8):  # a refusal costs something, also in a loop of restarts
        async with edge(tmp_path, tiny_bundle, **settings) as (_, service):
            assert service.answerer is not None
            before = service.answerer._hours.of("gate").left
            assert await answer(service, ask(frame, number, max_bytes=4001)) == "over-budget"
            assert service.answerer._hours.of("gate").left == max(0, before - REQUEST_BYTES)


async def test_an_original_that_was_cut_off_continues_with_its_own_charge(tiny_bundle: Path, tmp_path: Path) -> None:
    original = picture(128, 96)
    size = len(original)
    whole: dict[str, Any] = {"kind": RequestKind.ORIGINAL, "region": (0, 0, 0, 0), "max_bytes": size}
    async with box(tmp_path, tiny_bundle, request_bytes_per_hour=size + 2000) as (service, frame):
        respond = service.uplink._context.callbacks.answer
        assert respond is not None
        limits = list[int]()

        async def part(file: File) -> None:
            limits.append(file.limit)
            file.spend(3000)
            raise Interrupted("the stream broke")

        async def rest(file: File) -> None:
            limits.append(file.limit)
            file.spend(size - 3000 + 500)  # a piece was lost

        with pytest.raises(Interrupted):
            await respond(ask(frame, **whole), part)
        await respond(ask(frame, **whole), rest)
        assert limits == [bytes_in_pieces(size), size - 1000], (
            "what is sent again comes on top, as far as the hour has it"
        )
        assert await answer(service, ask(frame, 2, max_bytes=1501)) == "over-budget", "each byte counts once"
        assert await answer(service, ask(frame, 3, max_bytes=1500 - REQUEST_BYTES)) == "answered"
        with pytest.raises(Interrupted):
            await respond(ask(frame, **whole), part)
        assert limits[2] == 1500 - 2 * REQUEST_BYTES
        assert await answer(service, ask(frame, **whole)) == "over-budget", "nothing is left to send it once more"


async def test_each_attempt_costs_something_and_then_nothing_is_sent(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("a picture is decoded for an answer that can never fit")

    async with box(tmp_path, tiny_bundle, request_bytes_per_hour=10 * REQUEST_BYTES) as (service, frame):
        service.cameras["yard"] = forbidden
        monkeypatch.setattr("edge_encoder.encoding.picture_reader.PictureReader.load", forbidden)
        monkeypatch.setattr("edge_encoder.answers.answerer.jpeg_within", forbidden)
        never: list[dict[str, Any]] = [
            {"kind": RequestKind.ORIGINAL, "max_bytes": 64},
            {"kind": RequestKind.ORIGINAL, "max_bytes": 64, "region": (0, 0, 0, 0)},
            {"max_bytes": 9},
            {"kind": RequestKind.NOW, "source_id": "yard", "max_bytes": 9},
        ]
        for number, changes in enumerate(never):
            assert await answer(service, ask(frame, number, **changes)) == "over-budget"
        assert service.answerer is not None
        hours = {source: hour.left for source, hour in service.answerer._hours._of.items() if source}
        assert hours == {"gate": 7 * REQUEST_BYTES, "yard": 9 * REQUEST_BYTES}
        for number in range(10, 17):
            assert await answer(service, ask(frame, number, **never[0])) == "over-budget"
        assert await answer(service, ask(frame, 20, max_bytes=20)) == "over-budget", "another hour pays this refusal"
        outcomes = [await answer(service, ask(uuid.uuid4(), number)) for number in range(100, 170)]
        assert outcomes == ["gone"] * 63 + ["ignored"] * 7
        assert await answer(service, ask(frame, 21, max_bytes=20)) == "ignored"
        count = service.metrics.registry.get_sample_value("aeic_edge_requests_total", {"outcome": "ignored"})
        assert count == 8


async def test_a_request_that_comes_again_after_its_refusal_is_soon_ignored(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, tiny_bundle) as (service, frame):
        outcomes = [await answer(service, ask(frame, max_bytes=9)) for _ in range(4)]
        assert outcomes == ["over-budget", "over-budget", "ignored", "ignored"]
        assert await answer(service, ask(frame, 2)) == "answered", "others are not"
        monkeypatch.setattr("edge_encoder.answers.answerer._SAME_SECONDS", 0.0)
        assert await answer(service, ask(frame, max_bytes=9)) == "over-budget"


async def test_an_answer_is_charged_although_the_stream_ends_while_it_is_spooled(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, tiny_bundle, request_bytes_per_hour=6000) as (service, frame):
        put, spooled = service.spool.put, asyncio.Event()

        def slow(*given: Any, **more: Any) -> Any:
            put(*given, **more).result()
            spooled.set()
            return concurrent.futures.Future[Any]()

        monkeypatch.setattr(service.spool, "put", slow)
        task = asyncio.ensure_future(answer(service, ask(frame, kind=RequestKind.BETTER)))
        await spooled.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        entry = service.spool.get(request_id(1))
        assert entry is not None and entry.size > REQUEST_BYTES
        monkeypatch.setattr(service.spool, "put", put)
        assert await answer(service, ask(frame, 2, max_bytes=6001 - entry.size)) == "over-budget"


async def test_a_request_waits_for_an_original_that_is_about_to_be_kept(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, tiny_bundle) as (service, _):
        assert service.ring is not None
        keep, frame, go = service.ring.keep, uuid.uuid4(), threading.Event()

        def late(kept: Any) -> bool:
            return go.wait(20) and keep(kept)

        monkeypatch.setattr(service.ring, "keep", late)
        taken = asyncio.ensure_future(service.take(picture(128, 96, seed=3), _request(id=frame)))
        while service.spool.get(frame) is None:
            await asyncio.sleep(0.01)
        early = asyncio.ensure_future(answer(service, ask(frame)))
        assert await answer(service, ask(frame, 2, seconds=0.2)) == "gone", "it waits until its deadline at most"
        assert not early.done()
        go.set()
        await taken
        assert await early == "answered"


async def test_a_new_picture_is_taken_at_once_and_can_be_looked_at_closer(tiny_bundle: Path, tmp_path: Path) -> None:
    async with box(tmp_path, tiny_bundle) as (service, frame):
        taken = 0

        async def take() -> np.ndarray[Any, np.dtype[np.uint8]]:
            nonlocal taken
            taken += 1
            return np.full((80, 112, 3), 90, np.uint8)

        service.cameras["yard"] = take
        now = {"kind": RequestKind.NOW, "region": (0, 0, 0, 0), "source_id": "yard"}
        for _ in range(2):  # the second finds the first in the spool
            assert await answer(service, ask(frame, 1, **now)) == "answered"
        assert taken == 1
        first = service.spool.lease(1)[0]
        assert (first.id, first.source_id, first.original_width, first.original_height) == (
            request_id(1), "yard", 112, 80,
        )  # fmt: skip
        assert abs(first.captured_ms - first.created_ms) < 5000
        assert await answer(service, ask(request_id(1), 2, source_id="yard")) == "answered", "of the new picture"
        assert await answer(service, ask(frame, 3, **now | {"source_id": "gate"})) == "unsupported"
        assert await answer(service, ask(frame, 4, **now | {"source_id": ""})) == "unsupported"
    async with box(tmp_path / "off", tiny_bundle, request_now=False) as (service, frame):
        service.cameras["yard"] = take
        assert await answer(service, ask(frame, 1, **now)) == "forbidden" and taken == 1


async def test_a_camera_that_is_down_is_waited_for_until_the_deadline(tiny_bundle: Path, tmp_path: Path) -> None:
    async with box(tmp_path, tiny_bundle) as (service, frame):
        service.cameras["yard"] = asyncio.get_running_loop().create_future
        now = {"kind": RequestKind.NOW, "source_id": "yard", "seconds": 4.0}
        asked = [asyncio.ensure_future(answer(service, ask(frame, number, **now))) for number in range(3)]
        await asyncio.sleep(0.1)
        assert await answer(service, ask(frame, 9)) == "answered"
        assert not any(one.done() for one in asked), "they keep no other request waiting"
        assert await asyncio.gather(*asked) == ["expired"] * 3
