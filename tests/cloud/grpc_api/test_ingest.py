"""Ingest over loopback: acknowledged means stored, an id may be sent twice, and each refusal gives its reason."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from uuid import uuid4

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from aeic.v1 import ingest_pb2_grpc as pb_grpc
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.http_api.serializers import frame_json
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.presence import TWO_BOXES, Box
from cloud_decoder.store.frames import Frames
from cloud_decoder.store.store import FrameState, Store
from tests.support.cloud.cloud import FakeGenerator, IngestClient, running_cloud
from tests.support.frames import MakeFrame
from tests.support.waiting import until


async def test_frames_are_stored_acknowledged_in_order_and_decoded(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with running_cloud(decoder, tmp_path) as cloud, IngestClient(cloud.grpc) as edge:
        assert (await edge.hello(bundle)).window == cloud.settings.ingest_window
        ids = [uuid4() for _ in range(20)]
        for number, id in enumerate(ids):
            await edge.send(make_frame(number, 64, 64), id, captured_unix_ms=1000 + number)
        acks = [await edge.ack() for _ in ids]
        assert [ack.id for ack in acks] == [id.bytes for id in ids]
        assert {ack.status for ack in acks} == {pb.ACK_STATUS_STORED}
        for number, id in enumerate(ids):
            assert cloud.store.frames.bitstream("", id) == make_frame(number, 64, 64)
        commits = cloud.metrics.registry.get_sample_value("aeic_cloud_commit_frames_count")
        assert commits is not None and 1 <= commits <= 20
        await edge.send(make_frame(0, 64, 64), ids[0])
        assert (await edge.ack()).status == pb.ACK_STATUS_DUPLICATE
        await edge.send(make_frame(1, 64, 64), ids[0])
        conflict = await edge.ack()
        assert conflict.status == pb.ACK_STATUS_REJECTED and "another frame" in conflict.reason
        while cloud.store.frames.counts()["done"] < 20:
            await asyncio.sleep(0.02)
        assert ("", "box-1") in cloud.presence.connected
        await edge.finish()
        assert await edge.ended()


async def test_bad_frames_are_rejected_with_a_reason_and_the_stream_goes_on(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    good = make_frame(1)
    huge = bytearray(good)
    huge[2:6] = (8191 | 8191 << 13).to_bytes(4, "little")
    rate = bytearray(good)
    rate[1] |= 31
    bad = {
        "NotABitstream": b"\x00" + good[1:],
        "TooLarge": bytes(huge),
        "Damaged": bytes(rate),
        "Truncated": good[:5],
        "over the limit": good + bytes(5000),
    }

    limits = {"max_bitstream_bytes": 4096, "max_pixels": 10**6}
    async with running_cloud(decoder, tmp_path, **limits) as cloud, IngestClient(cloud.grpc) as edge:
        await edge.hello(bundle)
        for reason, data in bad.items():
            await edge.send(data, uuid4())
            ack = await edge.ack()
            assert ack.status == pb.ACK_STATUS_REJECTED and reason in ack.reason
        await edge.send(good, uuid4(), crc=1)
        assert "CRC" in (await edge.ack()).reason
        await edge.raw(pb.DeliverRequest(frame=pb.Frame(id=b"short", bitstream=good)))
        assert "16 bytes" in (await edge.ack()).reason
        await edge.raw(pb.DeliverRequest())
        assert "only frames" in (await edge.ack()).reason
        await edge.send(good, uuid4())
        assert (await edge.ack()).status == pb.ACK_STATUS_STORED
        assert sum(cloud.store.frames.counts().values()) == 1


async def test_a_frame_of_a_bundle_that_is_missing_is_kept_until_the_bundle_is_there(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    foreign = bytearray(make_frame(1))
    foreign[6] ^= 1
    data, id = bytes(foreign), uuid4()
    async with running_cloud(decoder, tmp_path, max_pixels=10**6) as cloud, IngestClient(cloud.grpc) as edge:
        await edge.hello(bundle)
        for status in (pb.ACK_STATUS_STORED, pb.ACK_STATUS_DUPLICATE):
            await edge.send(data, id)
            assert (await edge.ack()).status == status
        row = cloud.store.frames.get("", id)
        assert row is not None and row.state is FrameState.FAILED
        assert row.reason is not None and data[6:9].hex() in row.reason and "AEIC_CLOUD_OTHER_BUNDLES" in row.reason
        assert cloud.store.frames.bitstream("", id) == data
        assert cloud.store.queue.waiting(time.time()).ready == 0
        foreign[2:6] = (8191 | 8191 << 13).to_bytes(4, "little")
        await edge.send(bytes(foreign), uuid4())  # too large, whichever bundle made it
        assert (await edge.ack()).status == pb.ACK_STATUS_REJECTED
        assert cloud.store.queue.requeue(time.time()) == 1
        row = cloud.store.frames.get("", id)
        assert row is not None and row.state is FrameState.RECEIVED and row.reason is None


@pytest.mark.parametrize(
    ("source", "token", "digest", "code"),
    [
        ("box", "right-token", b"another bundle's digest", grpc.StatusCode.FAILED_PRECONDITION),
        ("box", "wrong-token", None, grpc.StatusCode.UNAUTHENTICATED),
        ("", "right-token", None, grpc.StatusCode.INVALID_ARGUMENT),
        ("b\x00x", "right-token", None, grpc.StatusCode.INVALID_ARGUMENT),
        ("x" * 129, "right-token", None, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_wrong_hello_ends_the_stream_once_and_clearly(
    bundle: Bundle,
    decoder: Decoder,
    tmp_path: Path,
    source: str,
    token: str,
    digest: bytes | None,
    code: grpc.StatusCode,
) -> None:
    async with running_cloud(decoder, tmp_path, tokens="acme:right-token") as cloud, IngestClient(cloud.grpc) as edge:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await edge.hello(bundle, source, token, digest)
        assert error.value.code() is code and error.value.details()
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            assert "same bundle" in str(error.value.details())


async def test_a_frame_before_hello_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    async with running_cloud(decoder, tmp_path) as cloud, IngestClient(cloud.grpc) as edge:
        await edge.send(b"x", uuid4())
        with pytest.raises(grpc.aio.AioRpcError, match="Hello"):
            await edge.ack()


async def test_a_store_that_cannot_write_acknowledges_nothing(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = uuid4()

    def full(*_: object, **__: object) -> None:
        raise StoreUnavailable("the store cannot commit (database or disk is full): free its disk")

    async with running_cloud(decoder, tmp_path) as cloud:
        with monkeypatch.context() as broken:
            broken.setattr(Frames, "add", full)
            async with IngestClient(cloud.grpc) as edge:
                await edge.hello(bundle)
                await edge.send(make_frame(1), id)
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await edge.ack()
                assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        async with IngestClient(cloud.grpc) as edge:  # the disk has room again, the edge comes again
            await edge.hello(bundle)
            await edge.send(make_frame(1), id)
            assert (await edge.ack()).status == pb.ACK_STATUS_STORED


async def test_draining_ends_streams_after_the_last_acknowledgement(
    bundle: Bundle, decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with running_cloud(decoder, tmp_path) as cloud, IngestClient(cloud.grpc) as edge:
        await edge.hello(bundle)
        for number in range(5):
            await edge.send(make_frame(number), uuid4())
        assert (await edge.ack()).status == pb.ACK_STATUS_STORED
        stopping = asyncio.create_task(cloud.stop())
        acks = 1
        while True:
            try:
                await edge.ack()
                acks += 1
            except EOFError:
                break
        await stopping
        store = Store(f"sqlite:///{tmp_path / 'store.db'}")
        assert sum(store.frames.counts().values()) >= acks
        store.close()


async def test_health_reflection_and_decode_for_machines(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    data = make_frame(4)

    async with running_cloud(decoder, tmp_path) as cloud, grpc.aio.insecure_channel(cloud.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "aeic.v1.IngestService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
        (listed,) = [answer async for answer in listing]
        assert "aeic.v1.DecodeService" in {one.name for one in listed.list_services_response.service}
        newer = channel.stream_stream(  # what clients ask first
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol="aeic.v1.IngestService")
        same, file = [answer async for answer in newer(iter([ask, symbol]))]
        assert same.list_services_response == listed.list_services_response
        assert b"IngestService" in file.file_descriptor_response.file_descriptor_proto[0]
        decode = pb_grpc.DecodeServiceStub(channel).Decode
        answer = await decode(pb.DecodeRequest(bitstream=data, format="webp"), timeout=10)
        assert (answer.width, answer.height) == (128, 96) and answer.image[8:12] == b"WEBP"
        foreign = bytearray(data)
        foreign[6] ^= 1
        for bad, format, code in [
            (data[:20], "png", grpc.StatusCode.INVALID_ARGUMENT),
            (b"", "png", grpc.StatusCode.INVALID_ARGUMENT),
            (data, "bmp", grpc.StatusCode.INVALID_ARGUMENT),
            (bytes(foreign), "", grpc.StatusCode.FAILED_PRECONDITION),
        ]:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await decode(pb.DecodeRequest(bitstream=bad, format=format), timeout=10)
            assert error.value.code() is code


async def test_cameras_behind_a_box_are_sources_of_their_own(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_decoder.grpc_api.ingest.MAX_CAMERAS", 3)

    async with running_cloud(decoder, tmp_path, eager="north") as cloud:
        async with IngestClient(cloud.grpc) as edge:
            await edge.hello(bundle)
            for number, camera in enumerate(("", "north", "south", "east")):
                await edge.send(make_frame(number), uuid4(), source_id=camera)
                assert (await edge.ack()).status == pb.ACK_STATUS_STORED
            for name in ("x" * 129, "two\nlines", "\x00"):
                await edge.send(make_frame(9), uuid4(), source_id=name)
                ack = await edge.ack()
                assert ack.status == pb.ACK_STATUS_REJECTED and "source_id" in ack.reason
            # All are taken; how many of one stream are shown as connected is bounded.
            assert set(cloud.presence.connected) == {("", "box-1"), ("", "north"), ("", "south")}
            rows = cloud.store.frames.page("", 10).rows
            assert {(row.source, row.wanted) for row in rows} == {
                ("box-1", False), ("north", True), ("south", False), ("east", False),
            }  # fmt: skip
        while cloud.presence.connected:
            await asyncio.sleep(0.02)


async def test_the_original_size_and_the_source_of_the_time_are_stored_and_shown(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with running_cloud(decoder, tmp_path) as cloud, IngestClient(cloud.grpc) as edge:
        await edge.hello(bundle)
        known, unknown, odd = ids = [uuid4() for _ in range(3)]
        about = {"original_width": 4000, "original_height": 3000, "captured_from": pb.CAPTURE_TIME_SOURCE_EXIF}
        await edge.send(make_frame(1, 64, 64), known, **about)
        await edge.send(make_frame(2, 64, 64), unknown)
        await edge.send(make_frame(3, 64, 64), odd, original_width=2**32 - 1, original_height=1, captured_from=99)
        assert {(await edge.ack()).status for _ in ids} == {pb.ACK_STATUS_STORED}
        rows = [cloud.store.frames.get("", id) for id in ids]
        shown = [frame_json(row, {}) for row in rows if row is not None]
        names = ("original_width", "original_height", "captured_from")
        assert [tuple(one[name] for name in names) for one in shown] == [
            (4000, 3000, "exif"),
            (None, None, None),
            (None, 1, None),
        ]


async def test_two_boxes_with_one_source_id_are_noticed(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def conflicts() -> float:
        return cloud.metrics.registry.get_sample_value("aeic_cloud_source_conflicts_total") or 0.0

    async with (
        running_cloud(decoder, tmp_path) as cloud,
        IngestClient(cloud.grpc) as old,
        IngestClient(cloud.grpc) as new,
        IngestClient(cloud.grpc) as other,
    ):
        await old.hello(bundle, process=b"a" * 16)
        await new.hello(bundle, process=b"a" * 16)  # one box that has connected again
        await old.send(make_frame(1), uuid4())
        await new.send(make_frame(2), uuid4())
        await old.ack(), await new.ack()
        assert conflicts() == 0
        await other.hello(bundle, process=b"b" * 16)
        await other.send(make_frame(3), uuid4())
        await other.ack()
        assert conflicts() == 0  # the first may be a stream that has not noticed its end
        for number in range(2):
            await new.send(make_frame(4 + number), uuid4())
            await new.ack()
        assert conflicts() == 1 and caplog.text.count("two boxes send as source 'box-1'") == 1
        async with httpx.AsyncClient(base_url=cloud.http) as http:

            async def warning() -> object:
                (source,) = (await http.get("/v1/sources")).json()["sources"]
                return source["box"]["warning"]

            assert await warning() == TWO_BOXES
            await other.finish()
            await until(lambda: cloud.presence.box("", "box-1") == Box("test"))
            assert await warning() == ""
