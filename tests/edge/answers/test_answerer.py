"""Requests of a cloud at the box: answered once with a frame, or refused with the reason; frames are not harmed."""

from __future__ import annotations

import asyncio
import contextlib
import io
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aeic.v1 import ingest_pb2 as pb
from edge_encoder.answers.answerer import Ask, File, Interrupted, Kind, Reason, Refused
from edge_encoder.errors import SpoolFull
from edge_encoder.service import EdgeService
from edge_encoder.spool.record import State
from tests.support.edge_fakes import FakeCloud, serving
from tests.support.in_process import edge
from tests.support.pictures import picture
from tests.support.waiting import until

KEEP = {"originals_max_bytes": 1 << 20, "cloud_address": ""}


def request_id(number: int) -> uuid.UUID:
    return uuid.UUID(int=0x8 << 76 | 0x2 << 62 | number)


def ask(frame: uuid.UUID, number: int = 1, **changes: Any) -> Ask:
    values: dict[str, Any] = {"kind": Kind.REGION, "region": (8, 8, 48, 32), "max_bytes": 4000, "seconds": 20.0}
    return Ask(request_id(number), frame, **values | changes)


@contextlib.asynccontextmanager
async def box(folder: Path, bundle: Path, **changes: Any) -> AsyncIterator[tuple[EdgeService, uuid.UUID]]:
    """An edge that has sent a picture of 128x96."""
    async with edge(folder, bundle, **KEEP | changes) as (client, service):
        posted = await client.post("/v1/frames", content=picture(128, 96), headers={"X-Source-Id": "gate"})
        yield service, uuid.UUID(posted.json()["id"])


async def answer(service: EdgeService, asked: Ask, sent: list[bytes] | None = None) -> str:
    """ "answered", or the reason of the refusal. Files are `sent`."""
    assert service.uplink._context.answer is not None

    async def send(file: File) -> None:
        file.sent = len(file.data)
        (sent if sent is not None else []).append(file.data)

    try:
        await service.uplink._context.answer(asked, send)
    except Refused as refused:
        assert str(refused)
        return refused.reason.value
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
        assert await answer(service, ask(frame, 2, kind=Kind.BETTER)) == "answered"
    async with edge(tmp_path, tiny_bundle, **KEEP) as (_, service):  # originals and answers are here after a restart
        assert await answer(service, ask(frame)) == "answered" and service.spool.pending_frames == before + 2
        assert await answer(service, ask(frame, 3)) == "answered"


@pytest.mark.parametrize(
    ("changed", "settings", "reason"),
    [
        ({"frame_id": uuid.uuid4()}, {}, Reason.GONE),
        ({"kind": Kind.ORIGINAL, "frame_id": uuid.uuid4()}, {}, Reason.GONE),
        ({"kind": Kind.ORIGINAL}, {"request_original_max_bytes": 0}, Reason.FORBIDDEN),
        ({"kind": Kind.ORIGINAL}, {"request_original_max_bytes": 3999}, Reason.OVER_BUDGET),
        ({"kind": Kind.ORIGINAL}, {"request_bytes_per_hour": 3999}, Reason.OVER_BUDGET),
        ({"kind": Kind.ORIGINAL, "region": (100, 8, 48, 32)}, {}, Reason.UNSUPPORTED),
        ({"kind": Kind.ORIGINAL, "max_bytes": 99}, {}, Reason.OVER_BUDGET),
        ({"kind": Kind.ORIGINAL, "seconds": 0.0}, {}, Reason.EXPIRED),
        ({"kind": Kind.NOW}, {}, Reason.UNSUPPORTED),
        ({"kind": Kind.UNKNOWN}, {}, Reason.UNSUPPORTED),
        ({"region": (100, 8, 48, 32)}, {}, Reason.UNSUPPORTED),
        ({"region": (0, 0, 4_000_000_000, 4_000_000_000)}, {}, Reason.UNSUPPORTED),
        ({"region": (0, 0, 0, 0)}, {}, Reason.UNSUPPORTED),
        ({"max_bytes": 5001}, {"request_max_bytes": 5000}, Reason.OVER_BUDGET),
        ({}, {"request_bytes_per_hour": 3999}, Reason.OVER_BUDGET),
        ({"max_bytes": 10}, {}, Reason.OVER_BUDGET),
        ({"seconds": 0.0}, {}, Reason.EXPIRED),
    ],
)
async def test_each_refusal_has_its_reason(
    tiny_bundle: Path, tmp_path: Path, changed: dict[str, Any], settings: dict[str, Any], reason: Reason
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
        assert await answer(service, ask(frame, 1, max_bytes=10)) == "over-budget"  # nothing fits: nothing is charged
        outcomes = [await answer(service, ask(frame, number)) for number in range(2, 60)]
        sent = sum(len(record.data) for record in service.spool.lease(99) if record.id.version == 8)
        assert outcomes[0] == "answered" and outcomes[-1] == "over-budget" and 1000 < sent <= 5000


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-lowest-priority"])
async def test_an_answer_never_takes_the_place_of_a_frame(tiny_bundle: Path, tmp_path: Path, policy: str) -> None:
    full = {"spool_max_bytes": 1 << 16, "spool_full_policy": policy}
    async with box(tmp_path, tiny_bundle, **full) as (service, frame):
        await service.submitter.take(picture(128, 96, seed=2), _request())
        waiting = [record.id for record in service.spool.lease(99)]
        service.spool.release(waiting)
        room = service.spool.pending_bytes
        object.__setattr__(service.spool._ledger, "limits", _limits(room, policy))
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


def _request() -> Any:
    from edge_encoder.submission.request import EncodeRequest

    return EncodeRequest(source_id="gate")


def _limits(max_bytes: int, policy: Any) -> Any:
    from edge_encoder.spool.ledger import Limits

    return Limits(max_bytes, policy)


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
        whole = {"kind": Kind.ORIGINAL, "region": (0, 0, 0, 0)}
        assert await answer(service, ask(frame, 1, **whole, max_bytes=len(original)), sent) == "answered"
        assert sent == [original]
        assert await answer(service, ask(frame, 2, **whole, max_bytes=len(original) - 1), sent) == "answered"
        assert len(sent[1]) < len(original) and sent[1][:3] == b"\xff\xd8\xff"
        assert await answer(service, ask(frame, 3, kind=Kind.ORIGINAL), sent) == "answered"
        with Image.open(io.BytesIO(sent[2])) as image:
            assert image.format == "JPEG" and image.size == (48, 32)
        assert service.spool.pending_frames == before, "a file is not spooled"
        assert service.uplink._context.answer is not None
        with pytest.raises(Refused, match="does not take"):  # a cloud of before
            await service.uplink._context.answer(ask(frame, 4, **whole), None)


async def test_an_original_is_charged_with_what_left_for_the_link(tiny_bundle: Path, tmp_path: Path) -> None:
    async with box(tmp_path, tiny_bundle, request_bytes_per_hour=5000) as (service, frame):
        assert service.uplink._context.answer is not None

        async def breaks(file: File) -> None:
            file.sent = 1000
            raise Interrupted("the stream broke")

        for number in (1, 2):
            with pytest.raises(Interrupted):
                await service.uplink._context.answer(ask(frame, number, kind=Kind.ORIGINAL, max_bytes=3500), breaks)
        assert await answer(service, ask(frame, 3, kind=Kind.ORIGINAL, max_bytes=3001)) == "over-budget"
        assert await answer(service, ask(frame, 4, kind=Kind.ORIGINAL, max_bytes=3000)) == "answered"


async def test_a_new_picture_is_taken_at_once_and_can_be_looked_at_closer(tiny_bundle: Path, tmp_path: Path) -> None:
    async with box(tmp_path, tiny_bundle) as (service, frame):
        taken = 0

        async def take() -> np.ndarray[Any, np.dtype[np.uint8]]:
            nonlocal taken
            taken += 1
            return np.full((80, 112, 3), 90, np.uint8)

        service.cameras["yard"] = take
        now = {"kind": Kind.NOW, "region": (0, 0, 0, 0), "source_id": "yard"}
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
        service.cameras["yard"] = asyncio.get_running_loop().create_future  # type: ignore[assignment]
        now = {"kind": Kind.NOW, "source_id": "yard", "seconds": 4.0}
        asked = [asyncio.ensure_future(answer(service, ask(frame, number, **now))) for number in range(3)]
        await asyncio.sleep(0.1)
        assert await answer(service, ask(frame, 9)) == "answered"
        assert not any(one.done() for one in asked), "they keep no other request waiting"
        assert await asyncio.gather(*asked) == ["expired"] * 3
