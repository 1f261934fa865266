"""Machine clients: many frames over one stream; each is answered by its tag, and none ends the stream."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from PIL import Image

from aeic.v1 import decode_pb2 as many
from aeic.v1 import decode_pb2_grpc as many_grpc
from cloud_decoder.grpc_api import decode
from cloud_decoder.inference.decoder import Decoder
from tests.support.cloud.cloud import FakeGenerator, jobs_of, running_cloud
from tests.support.frames import MakeFrame


async def test_every_frame_of_a_stream_has_its_answer(decoder: Decoder, make_frame: MakeFrame, tmp_path: Path) -> None:
    formats = ["png", "webp", "jpeg", "avif", ""]
    asked = [
        many.DecodeManyRequest(
            tag=7 + seed, bitstream=make_frame(seed), format=formats[seed % 5], width=32 * (seed % 2)
        )
        for seed in range(20)
    ]
    damaged = bytearray(make_frame(3))
    damaged[-1] ^= 1
    wrong = [
        many.DecodeManyRequest(tag=100, bitstream=bytes(damaged)),
        many.DecodeManyRequest(tag=101, bitstream=make_frame(1), format="exe"),
        many.DecodeManyRequest(tag=102, bitstream=make_frame(1), width=3),
    ]

    async with running_cloud(decoder, tmp_path) as cloud, grpc.aio.insecure_channel(cloud.grpc) as channel:
        stub = many_grpc.DecodeStreamServiceStub(channel)
        answers = {answer.tag: answer async for answer in stub.DecodeMany(iter([*asked, *wrong]))}
        assert set(answers) == {request.tag for request in (*asked, *wrong)}
        for request in asked:
            picture = answers[request.tag].picture
            assert (picture.width, picture.height) == (128, 96) and len(picture.latents_digest) == 64
            with Image.open(io.BytesIO(picture.image)) as image:
                assert image.format == (request.format or "png").upper()
                assert image.width == (request.width or 128)
        for tag in (100, 101, 102):
            assert answers[tag].failure.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert answers[tag].failure.reason


async def test_a_stream_is_read_no_further_than_its_window_and_a_client_that_leaves_takes_its_work_along(
    decoder: Decoder,
    generator: FakeGenerator,
    make_frame: MakeFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode, "WINDOW", 5)

    async def requests() -> AsyncIterator[many.DecodeManyRequest]:
        for seed in range(12):
            yield many.DecodeManyRequest(tag=seed, bitstream=make_frame(seed), timeout_ms=20_000)

    async with running_cloud(decoder, tmp_path) as cloud, grpc.aio.insecure_channel(cloud.grpc) as channel:
        generator.gate.clear()
        call = many_grpc.DecodeStreamServiceStub(channel).DecodeMany(requests())
        await asyncio.sleep(0.5)
        assert len(jobs_of(cloud)) == 5
        call.cancel()
        for _ in range(200):
            await asyncio.sleep(0.01)
            if not jobs_of(cloud):
                break
        assert not jobs_of(cloud)
        generator.gate.set()
        answers = [a async for a in many_grpc.DecodeStreamServiceStub(channel).DecodeMany(requests())]
        assert len(answers) == 12 and all(answer.HasField("picture") for answer in answers)


async def test_a_stream_wants_a_token_and_a_full_queue_is_an_answer(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path
) -> None:
    asked = [many.DecodeManyRequest(tag=seed, bitstream=make_frame(seed)) for seed in range(6)]

    options = {"tokens": "acme:token-of-acme", "max_queue": 2}
    async with (
        running_cloud(decoder, tmp_path, **options) as cloud,
        grpc.aio.insecure_channel(cloud.grpc) as channel,
    ):
        stub = many_grpc.DecodeStreamServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:  # one that writes may meet the closed door first
            [_ async for _ in stub.DecodeMany(iter([]))]
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        generator.gate.clear()
        asyncio.get_running_loop().call_later(0.5, generator.gate.set)
        metadata = (("authorization", "Bearer token-of-acme"),)
        answers = [answer async for answer in stub.DecodeMany(iter(asked), metadata=metadata)]
        failures = [answer.failure for answer in answers if answer.HasField("failure")]
        assert len(answers) == 6 and len(failures) == 4
        for failure in failures:
            assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0] and failure.retry_after_ms > 0
