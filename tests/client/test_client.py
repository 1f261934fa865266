"""The client against a real cloud: what it lists, waits for, follows and decodes is what is there."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from uuid import uuid4

import httpx
import pytest
from PIL import Image

from aeic.bundle import Bundle
from aeic_client import AsyncClient, Client, NotReady, Problem, aio, client, messages
from aeic_client.messages import Event, EventParser, Frame, Known, query
from tests.support.cloud.cloud import CloudThread
from tests.support.frames import MakeFrame, new_frame, stored_frame
from tests.support.waiting import until, wait_until


@pytest.fixture
def running(bundle: Bundle, tmp_path: Path) -> Iterator[CloudThread]:
    started = CloudThread(bundle, tmp_path)
    yield started
    started.stop()


def test_list_wait_image_decode(running: CloudThread, make_frame: MakeFrame) -> None:
    with Client(running.cloud.http) as cloud:
        stored = [running.put(make_frame(seed), source=f"box-{seed % 2}") for seed in range(5)]
        picture = cloud.image(stored[0].id, "png", wait=20)
        assert Image.open(io.BytesIO(picture)).size == (128, 96)
        assert Image.open(io.BytesIO(cloud.image(stored[0].id, "webp", width=64))).size == (64, 48)
        assert cloud.bitstream(stored[0].id) == stored[0].bitstream
        for new in stored:
            cloud.image(new.id, wait=20)
        listed = list(cloud.frames())
        assert [one.id for one in listed] == [new.id for new in reversed(stored)]
        assert {one.source for one in cloud.frames(source="box-1", state="done")} == {"box-1"}
        frame = cloud.frame(stored[0].id)
        assert (frame.bytes, frame.width, frame.state) == (len(stored[0].bitstream), 128, "done")
        assert frame.received_at and frame.timings and frame.timings["synthesis"] > 0
        assert Image.open(io.BytesIO(cloud.decode(make_frame(9)))).size == (128, 96)
        assert {one.source: one.frames for one in cloud.sources()} == {"box-0": 3, "box-1": 2}
        late = uuid4()
        threading.Timer(0.3, lambda: running.put(make_frame(20), id=late)).start()
        assert cloud.frame(late, wait=10).id == late


def test_pages_are_fetched_as_needed(
    running: CloudThread,
    make_frame: MakeFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "PAGE", 2)
    stored = [running.put(make_frame(seed)) for seed in range(5)]
    with Client(running.cloud.http) as cloud:
        assert [one.id for one in cloud.frames()] == [new.id for new in reversed(stored)]


def test_refusals_are_problems(running: CloudThread, make_frame: MakeFrame) -> None:
    with Client(running.cloud.http) as cloud:
        for call, status in (
            (lambda: cloud.frame(uuid4()), 404),
            (lambda: cloud.frame("no-id"), 400),
            (lambda: cloud.decode(b"no frame"), 422),
            (lambda: cloud.image(uuid4(), "exe"), 400),
        ):
            with pytest.raises(Problem) as caught:
                call()
            assert caught.value.status == status and caught.value.detail
        sleeping = new_frame(make_frame(3), wanted=False)
        running.cloud.store.frames.add([sleeping], time.time())
        with pytest.raises(NotReady) as early:
            cloud.image(sleeping.id, wait=0)
        assert early.value.retry_after == 1.0


def test_problems_have_a_type_and_the_status_is_there(running: CloudThread) -> None:
    with Client(running.cloud.http) as cloud:
        with pytest.raises(Problem) as caught:
            cloud.decode(b"no frame")
        assert caught.value.type.startswith("urn:aeic:")
        assert cloud.status()["ready"] and cloud.sources() == []
        with pytest.raises(Problem, match="AEIC_CLOUD_EDGE_URL"):
            cloud.encode(b"a picture")


def test_frames_are_deleted(
    bundle: Bundle, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_decoder.http_api.deletion.CALLS", 1)
    started = CloudThread(bundle, tmp_path, tokens="a:a-long-token", eager="none")
    try:
        with Client(started.cloud.http, "a-long-token") as cloud:
            new = started.put(make_frame(1), tenant="a")
            cloud.delete(new.id)
            cloud.delete(new.id)
            assert cloud.frame(new.id).state == "pruned"
            with pytest.raises(Problem) as caught:
                cloud.image(new.id)
            assert caught.value.status == 410
            with pytest.raises(Problem) as caught:
                cloud.delete(uuid4())
            assert caught.value.status == 404
            many = [stored_frame(b"%d" % n, tenant="a", source="mast", wanted=False) for n in range(1200)]
            started.cloud.store.frames.add(many, time.time())
            assert cloud.delete_frames("mast", until=datetime(2020, 1, 1, tzinfo=UTC)) == 0
            assert cloud.delete_frames("mast") == 1200 and cloud.delete_frames("mast") == 0
    finally:
        started.stop()


class Answers:
    """A transport that gives these answers in turn; an exception is raised."""

    def __init__(self, *answers: int | Exception) -> None:
        self.left = list(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = self.left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, json={"id": str(uuid4())}, headers={"Retry-After": "0"})


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((503, 429, 200), None),
        ((httpx.ConnectError("no"), 200), None),
        ((503, 503, 503, 200), Problem),
        ((404, 200), Problem),
        ((httpx.ReadError("cut"), httpx.ReadError("cut"), httpx.ReadError("cut"), 200), httpx.ReadError),
    ],
)
def test_requests_are_sent_again(
    answers: tuple[Any, ...], expected: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "FIRST_PAUSE_SECONDS", 0.0)
    transport = Answers(*answers)
    with httpx.Client(transport=httpx.MockTransport(transport)) as http:
        with Client("http://cloud/prefix/", retries=2, http=http) as cloud:
            if expected is None:
                cloud.bitstream(uuid4())
                assert transport.left == []
            else:
                with pytest.raises(expected):
                    cloud.bitstream(uuid4())
                assert transport.left == [200]
        assert not http.is_closed  # it is not the client's


def test_a_picture_that_may_have_arrived_is_not_sent_again() -> None:
    transport = Answers(httpx.ReadError("cut"), 202)
    with httpx.Client(transport=httpx.MockTransport(transport)) as http, pytest.raises(httpx.ReadError):
        Client("http://cloud", http=http).encode(b"a picture")
    assert transport.left == [202]


async def test_a_budget_that_is_spent_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "LONGEST_PAUSE_SECONDS", 0.0)
    given = {"type": messages.BUDGET_SPENT, "detail": "spent"}
    sent = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(429, json=given, headers={"Retry-After": "60"})

    with httpx.Client(transport=httpx.MockTransport(answer)) as http, pytest.raises(Problem, match="spent") as caught:
        Client("http://cloud", http=http).ask(uuid4(), "better")
    assert caught.value.retry_after == 60
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as asynchronous:
        with pytest.raises(Problem, match="spent"):
            await AsyncClient("http://cloud", http=asynchronous).ask(uuid4(), "better")
    assert len(sent) == 2
    for body in (b"", b"[]", b'{"type": "urn:aeic:overloaded"}'):
        assert messages.passes(httpx.Response(429, content=body))


def test_pauses_grow_and_follow_the_server() -> None:
    asked = httpx.Response(429, headers={"Retry-After": "7"})
    assert 7 <= messages.pause(0, asked) <= 10.5
    assert messages.pause(3, None) >= 4 and messages.pause(50, None) <= 45


def test_a_wrong_token_ends_following(bundle: Bundle, tmp_path: Path) -> None:
    started = CloudThread(bundle, tmp_path, tokens="a:a-long-token")
    try:
        with Client(started.cloud.http, "another-token") as cloud, pytest.raises(Problem) as caught:
            next(cloud.follow())
        assert caught.value.status == 401
        with Client(started.cloud.http, "a-long-token") as cloud:
            assert list(cloud.frames()) == []
    finally:
        started.stop()


def test_following_survives_a_restart_and_misses_nothing(
    bundle: Bundle,
    make_frame: MakeFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.1)
    first = CloudThread(bundle, tmp_path)
    old = first.put(make_frame(1))
    seen: list[Any] = []
    with Client(first.cloud.http) as cloud:
        cloud.image(old.id, wait=20)  # decoded before anybody follows

        def listen() -> None:
            with contextlib.suppress(RuntimeError):  # the client is closed under its hands at the end
                for frame, picture in cloud.pictures("png"):
                    assert picture.startswith(b"\x89PNG")
                    seen.append(frame.id)

        threading.Thread(target=listen, daemon=True).start()
        wait_until(lambda: len(first.cloud.event_bus) > 0)
        time.sleep(0.2)
        before = [first.put(make_frame(seed)).id for seed in (2, 3)]
        wait_until(lambda: len(seen) == 2)
        first.stop()
        port = int(first.cloud.http.rsplit(":", 1)[1])
        second = CloudThread(bundle, tmp_path)  # it has no listener, so what it decodes is missed
        missed = second.put(make_frame(4)).id
        with Client(second.cloud.http) as other:
            other.image(missed, wait=20)
        second.stop()
        third = CloudThread(bundle, tmp_path, port=port)  # the same address again, as a restarted service has it
        wait_until(lambda: len(seen) == 3)
        after = third.put(make_frame(5)).id
        wait_until(lambda: len(seen) == 4)
        third.stop()
    assert sorted(seen) == sorted([*before, missed, after]) and seen[-1] == after


async def test_the_same_by_asyncio(running: CloudThread, make_frame: MakeFrame) -> None:
    async with AsyncClient(running.cloud.http) as cloud:
        following: Any = cloud.pictures("webp", 64)
        task = asyncio.ensure_future(anext(following))
        await until(lambda: len(running.cloud.event_bus) > 0)
        await asyncio.sleep(0.2)
        new = running.put(make_frame(1))
        frame, picture = await asyncio.wait_for(task, 20)
        assert frame.id == new.id and Image.open(io.BytesIO(picture)).size == (64, 48)
        await following.aclose()
        assert [one.id async for one in cloud.frames()] == [new.id]
        assert (await cloud.frame(new.id)).state == "done"
        assert await cloud.bitstream(new.id) == new.bitstream
        assert Image.open(io.BytesIO(await cloud.decode(new.bitstream))).size == (128, 96)
        with pytest.raises(Problem):
            await cloud.image(uuid4(), wait=0)


class _Awaited(ast.NodeTransformer):
    """What asyncio's client is without asyncio."""

    plain: ClassVar = {"AsyncClient": "Client", "AsyncIterator": "Iterator", "aiter_text": "iter_text"}
    plain |= {"aread": "read", "aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__", "asyncio": "time"}

    def visit(self, node: ast.AST) -> Any:
        node = super().generic_visit(node)
        for field in ("name", "id", "attr"):
            if isinstance(name := getattr(node, field, None), str):
                setattr(node, field, self.plain.get(name, name))
        kind = type(node).__name__
        if kind == "For" and ast.unparse(ast.fix_missing_locations(node)).endswith("yield event"):
            # Coroutines have no `yield from`.
            return ast.Expr(ast.YieldFrom(node.iter))  # type: ignore[attr-defined]  # it has one, by its kind
        if kind == "Await":
            return node.value  # type: ignore[attr-defined]  # it has one, by its kind
        if kind.startswith("Async"):
            return getattr(ast, kind.removeprefix("Async"))(**dict(ast.iter_fields(node)))
        return node


def test_both_do_the_same_word_for_word() -> None:
    def body(module: ModuleType) -> str:
        (found,) = (node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef))
        return ast.unparse(ast.fix_missing_locations(_Awaited().visit(found)))

    assert body(client) == body(aio)


def test_a_time_without_a_zone_is_a_local_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cloud takes it for UTC, so that frames of other hours would be deleted."""
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        assert query(until=datetime(2026, 11, 1, 12)) == {"until": "2026-11-01T12:00:00+05:45"}
        assert query(until=datetime(2026, 11, 1, 12, tzinfo=UTC)) == {"until": "2026-11-01T12:00:00+00:00"}
    finally:
        monkeypatch.undo()
        time.tzset()


def test_events_cut_anywhere() -> None:
    frame = '{"id": "00000000-0000-7000-8000-000000000001", "state": "done", "source": "s", "width": 1, "height": 1,'
    frame += ' "bytes": 2, "bpp": 16, "rate": 0, "digest": "d", "received_at": "2026-11-24T10:00:00.000Z", "new": 1}'
    text = f'retry: 2000\n\n: still here\n\nevent: done\ndata: {{"event": "done", "frame": {frame}}}\n\n'
    for size in (1, 3, 7, 1000):
        parser, found = EventParser(), list[Event]()
        for at in range(0, len(text), size):
            found += parser.feed(text[at : at + size])
        (event,) = found
        assert event.kind == "done" and event.frame and event.frame.source == "s"
    with pytest.raises(Problem):
        list(EventParser().feed("x" * (1 << 21)))


def test_known_frames_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aeic_client.messages.MAX_KNOWN", 3)
    known = Known()

    def frame() -> Frame:
        return Frame(uuid4(), "done", "s", 1, 1, 1, 8.0, 0, "", None)

    frames = [frame() for _ in range(5)]
    assert all(known.take(one) for one in frames) and not known.take(frames[-1]) and len(known._had) == 3
