"""A topic of an MQTT broker as a source, against Debian's mosquitto: what is acknowledged to it is in the spool."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aeic_service.errors import Overloaded
from aeic_service.settings import readable
from edge_encoder.service import EdgeService
from edge_encoder.settings import EdgeSettings
from edge_encoder.source_settings import MqttSettings
from edge_encoder.sources.mqtt_topic import MqttTopic
from edge_encoder.spool.record import CapturedFrom
from tests.support.edge.fakes import settings
from tests.support.pictures import gif, picture
from tests.support.sources.broker import Broker, broker
from tests.support.waiting import until

publish = pytest.importorskip("paho.mqtt.publish", reason="paho-mqtt comes with the extra edge-mqtt")


def _has_refused_one(source: MqttTopic) -> bool:
    return source.status.refused == 1


def topic(edge: EdgeService, port: int, user: str = "", **changes: Any) -> MqttTopic:
    values = {"name": "yard", "url": f"mqtt://{user}127.0.0.1:{port}", "topic": "yard/jpeg", **changes}
    return MqttTopic(edge, MqttSettings(**values))


@contextlib.asynccontextmanager
async def running(source: MqttTopic) -> AsyncIterator[None]:
    task = asyncio.create_task(source.run())
    try:
        await until(lambda: source.status.state == "up", 30)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def service(folder: Path, bundle: Path, **changes: Any) -> AsyncIterator[EdgeService]:
    given = settings(folder / "spool", bundle=bundle, drain_timeout_seconds=0, backoff_max_seconds=0.5, **changes)
    edge = EdgeService(given)
    await edge.start()
    yield edge
    await edge.stop()


def send(to: Broker, *payloads: bytes, qos: int = 1, retain: bool = False) -> None:
    user = {"username": "box", "password": to.password} if to.password else None
    messages = [{"topic": "yard/jpeg", "payload": payload, "qos": qos, "retain": retain} for payload in payloads]
    publish.multiple(messages, hostname="127.0.0.1", port=to.port, auth=user)


async def test_pictures_are_taken_and_others_refused(
    tmp_path: Path, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "s3cret"
    with broker(tmp_path / "broker", secret) as server:
        async with service(tmp_path, tiny_bundle, max_body_bytes=20_000) as edge:
            source = topic(edge, server.port, f"box:{secret}@", max_side=64, priority=3)
            async with running(source):
                large = picture() + bytes(40_000)  # over 90,000 bytes, the broker would keep it back
                await asyncio.to_thread(send, server, picture(seed=1), gif(), b"ON", large, picture(seed=2))
                await until(lambda: source.status.taken + source.status.refused == 5, 60)
            assert (source.status.taken, source.status.refused) == (2, 3)
            records = edge.spool.lease(10)
            assert {(r.source_id, r.width, r.priority) for r in records} == {("mast-7/yard", 64, 3)}
            assert {r.captured_from for r in records} == {CapturedFrom.CLOCK} and len(records) == 2
            assert "this is GIF" in caplog.text and "AEIC_EDGE_MAX_BODY_BYTES" in caplog.text
            assert secret not in caplog.text + repr(edge.settings) + repr(source.status)


async def test_the_broker_keeps_what_is_not_in_the_spool(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the box is away, while it has no room, and when it ends before a picture is in the spool."""
    with broker(tmp_path / "broker") as server:
        async with service(tmp_path, tiny_bundle) as edge:
            async with running(topic(edge, server.port)):
                pass
            await asyncio.to_thread(send, server, *(picture(seed=number) for number in range(5)))  # the box is away
            take, refused = edge.take, 0

            async def full(*_: object) -> None:
                nonlocal refused
                refused += 1
                raise Overloaded("no room")

            with monkeypatch.context() as patch:
                patch.setattr(edge, "take", full)
                source = topic(edge, server.port)
                async with running(source):
                    await until(lambda: refused >= 2, 30)
                    assert source.status.taken == 0 and source._messages.qsize() <= 2
            assert edge.take == take
            source = topic(edge, server.port)
            async with running(source):
                await until(lambda: source.status.taken == 5, 60)
            assert edge.spool.pending_frames == 5


async def test_a_broker_that_restarts_loses_and_repeats_nothing(tmp_path: Path, tiny_bundle: Path) -> None:
    with broker(tmp_path / "broker") as server:
        async with service(tmp_path, tiny_bundle) as edge:
            source = topic(edge, server.port)
            async with running(source):
                await asyncio.to_thread(send, server, picture(seed=1))
                await until(lambda: source.status.taken == 1, 60)
                server.stop()
                await until(lambda: source.status.state == "down", 60)
                assert source.status.detail
                server.start()
                await until(lambda: source.status.state == "up", 60)
                await asyncio.to_thread(send, server, picture(seed=2))
                await until(lambda: source.status.taken == 2, 60)
            assert edge.spool.pending_frames == 2


async def test_a_flood_without_acknowledgements_is_skipped(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker sends messages of QoS 0 as fast as they come, whatever is not acknowledged."""
    with broker(tmp_path / "broker") as server:
        async with service(tmp_path, tiny_bundle) as edge:
            going, take = asyncio.Event(), edge.take

            async def slow(*arguments: Any) -> Any:
                await going.wait()
                return await take(*arguments)

            monkeypatch.setattr(edge, "take", slow)
            source = topic(edge, server.port)
            busy = edge.metrics.source_frames.labels("yard", "busy")._value
            async with running(source):
                await asyncio.to_thread(send, server, *(picture(seed=number) for number in range(20)), qos=0)
                await until(lambda: busy.get() >= 17, 30)
                waiting = source._messages.qsize()
                assert waiting <= 2
                await asyncio.to_thread(send, server, picture(seed=20), picture(seed=21))  # these are not skipped
                await until(lambda: source._messages.qsize() == waiting + 2, 30)
                going.set()
                await until(lambda: source.status.taken == 22 - busy.get(), 60)
                assert source.status.state == "up" and source.status.failures_in_a_row == 0


async def test_a_retained_message_is_taken_once(tmp_path: Path, tiny_bundle: Path) -> None:
    with broker(tmp_path / "broker") as server:
        async with service(tmp_path, tiny_bundle) as edge:
            await asyncio.to_thread(send, server, picture(), retain=True)
            for _ in range(3):
                source = topic(edge, server.port)
                async with running(source):
                    await until(lambda: edge.spool.pending_frames > 0, 60)
                    await asyncio.to_thread(send, server, b"the last one")
                    await until(functools.partial(_has_refused_one, source), 60)
            assert edge.spool.pending_frames == 1


async def test_a_message_that_fails_unexpectedly_does_not_stop_the_next(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_encoder.sources.mqtt_topic._PAUSE_SECONDS", 0.01)
    with broker(tmp_path / "broker") as server:
        async with service(tmp_path, tiny_bundle) as edge:
            take, tries = edge.take, list[bytes]()

            async def fails(data: bytes, *arguments: Any) -> Any:
                tries.append(data)
                if data == b"poison" or tries.count(data) < 3:
                    raise RuntimeError("no memory")
                return await take(data, *arguments)

            monkeypatch.setattr(edge, "take", fails)
            source = topic(edge, server.port)
            async with running(source):
                await asyncio.to_thread(send, server, b"poison", picture(seed=1))
                await until(lambda: source.status.taken == 1, 60)
            assert tries.count(b"poison") == 3 and edge.spool.pending_frames == 1


async def test_a_message_waits_while_the_machine_lacks_memory(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not acknowledged, and so not lost, however long that lasts."""
    with broker(tmp_path / "broker") as server:
        async with service(tmp_path, tiny_bundle, backoff_min_seconds=0.01) as edge:
            take, tries, short = edge.take, list[bytes](), True

            async def fails(data: bytes, *arguments: Any) -> Any:
                tries.append(data)
                if short:
                    raise MemoryError
                return await take(data, *arguments)

            monkeypatch.setattr(edge, "take", fails)
            source = topic(edge, server.port)
            async with running(source):
                await asyncio.to_thread(send, server, picture(seed=1))
                await until(lambda: len(tries) > 5, 60)
                assert source.status.state == "down" and "cannot encode now: MemoryError" in source.status.detail
                short = False
                await until(lambda: source.status.taken == 1, 60)
                assert source.status.state == "up"
            assert edge.spool.pending_frames == 1


async def test_a_wrong_password_is_shown(tmp_path: Path, tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with broker(tmp_path / "broker", "right") as server:
        async with service(tmp_path, tiny_bundle) as edge:
            source = topic(edge, server.port, "box:wr0ng@")
            task = asyncio.create_task(source.run())
            await until(lambda: source.status.state == "down", 60)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert "Not authorized" in source.status.detail and "wr0ng" not in caplog.text


async def test_without_the_extra_the_remedy_is_named_once(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "paho.mqtt.client", None)
    async with service(tmp_path, tiny_bundle) as edge:
        source = topic(edge, 1)
        task = edge.supervisor.start("mqtt yard", source.run)
        await until(lambda: source.status.state == "down")
        await asyncio.sleep(1)  # longer than the shortest pause before a task that failed is started again
        assert 'pip install ".[edge-mqtt]"' in source.status.detail
        (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert source.status.detail in line.getMessage() and line.exc_info is None
        assert edge.supervisor.tasks[-1].restarts == 0 and not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_settings_of_a_topic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('[[mqtt]]\nname = "yard"\nurl = "mqtts://box:s3cret@broker.example"\ntopic = "yard/jpeg"\n')
    monkeypatch.setenv("AEIC_EDGE_CONFIG", str(file))
    found = EdgeSettings()
    assert found.mqtt[0].topic == "yard/jpeg" and "s3cret" not in repr(found) + str(found.model_dump())
    good: dict[str, Any] = {"name": "yard", "url": "mqtt://h", "topic": "t"}
    for bad in ({"url": "http://box:s3cret@h"}, {"url": "mqtt://box:s3cret@"}, {"topic": "a/+/b"}, {"topic": "#"}):
        with pytest.raises(ValidationError) as caught:
            MqttSettings(**{**good, **bad})
        assert "s3cret" not in readable(caught.value)
