"""A decoder that needs no network: the tiny bundle, and generators that do as they are told."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import numpy as np
import pytest

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from aeic.v1 import ingest_pb2 as pb
from aeic.v1 import ingest_pb2_grpc as pb_grpc
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.inference.onnx_backend import OnnxGenerator
from cloud_decoder.service import Cloud
from cloud_decoder.settings import Settings
from cloud_decoder.store.store import NewFrame, Store
from tests.support.postgres import Postgres, missing

MakeFrame = Callable[..., bytes]


class FakeGenerator:
    """Runs the tiny bundle's synthesis, remembers its batches, and fails or waits as a test wants."""

    def __init__(self, bundle: Bundle) -> None:
        self._inner = OnnxGenerator(bundle.path, 1)
        self.batches: list[tuple[int, ...]] = []
        self.most: int | None = None  # more than this at once is out of memory
        self.poison: Callable[[np.ndarray], bool] | None = None
        self.gate = threading.Event()  # the device works only while it is set
        self.gate.set()
        self.seconds = 0.0
        self.entered = 0

    def __call__(self, y_hat: np.ndarray) -> np.ndarray:
        self.entered += 1
        assert self.gate.wait(20)
        time.sleep(self.seconds)
        self.batches.append(y_hat.shape)
        if self.most is not None and len(y_hat) > self.most:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 7")
        if self.poison is not None and any(self.poison(one) for one in y_hat):
            raise ZeroDivisionError("a bug that only this frame meets")
        return self._inner(y_hat)


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.load(tiny_bundle)


@pytest.fixture(scope="session")
def make_frame(bundle: Bundle) -> MakeFrame:
    """Whole frames of random latents, different for each seed."""
    codec = LatentCodec(bundle, 1)

    def make(seed: int = 0, width: int = 128, height: int = 96, rate: int = 0) -> bytes:
        size = Frame(width, height, rate, bundle.fingerprint, b"").latent_size
        y = np.random.default_rng(seed).normal(0, 20, (bundle.channels, *size)).astype(np.float32)
        return codec.encode(y, rate, width, height)

    return make


@pytest.fixture
def generator(bundle: Bundle) -> FakeGenerator:
    return FakeGenerator(bundle)


@pytest.fixture
def decoder(bundle: Bundle, generator: FakeGenerator) -> Decoder:
    return Decoder(bundle, generator, threads=1, max_batch=4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'store.db'}")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server; skips where there is none to run."""
    if why_not := missing():
        pytest.skip(why_not)
    server = Postgres().start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    return request.getfixturevalue("postgres").fresh()


def new_frame(data: bytes, id: UUID | None = None, **changed: object) -> NewFrame:
    """What ingest would store for ``data``."""
    frame = Frame.parse(data)
    values: dict[str, object] = {
        "tenant": "",
        "id": id or uuid4(),
        "source": "box-1",
        "captured_ms": int(time.time() * 1000),
        "priority": 0,
        "width": frame.width,
        "height": frame.height,
        "rate": frame.rate,
        "fingerprint": frame.fingerprint,
        "digest": hashlib.sha256(data).hexdigest(),
        "bitstream": data,
    }
    return NewFrame(**(values | changed))  # type: ignore[arg-type]


@asynccontextmanager
async def running_cloud(decoder: Decoder, data_dir: Path, **changed: object) -> AsyncIterator[Cloud]:
    """A whole cloud on free loopback ports."""
    cloud = Cloud(Settings(host="127.0.0.1", port=0, grpc_port=0, data_dir=data_dir, **changed), decoder)  # type: ignore
    await cloud.start()
    try:
        yield cloud
    finally:
        await cloud.stop()


class Edge:
    """The other end of a stream, as the contract has it."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._call = pb_grpc.IngestServiceStub(self._channel).Deliver()

    async def __aenter__(self) -> Edge:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        await self._channel.close()

    async def hello(
        self, bundle: Bundle, source: str = "box-1", token: str = "", digest: bytes | None = None
    ) -> pb.Welcome:
        given = bundle.digest if digest is None else digest
        message = pb.Hello(source_id=source, bundle_digest=given, software="test", token=token)
        await self._call.write(pb.DeliverRequest(hello=message))
        return (await self._read()).welcome

    async def send(self, data: bytes, id: UUID, crc: int | None = None, **more: Any) -> None:
        frame = pb.Frame(id=id.bytes, bitstream=data, crc32=zlib.crc32(data) if crc is None else crc, **more)
        await self._call.write(pb.DeliverRequest(frame=frame))

    async def ack(self) -> pb.Ack:
        return (await self._read()).ack

    async def raw(self, request: pb.DeliverRequest) -> None:
        await self._call.write(request)

    async def finish(self) -> None:
        await self._call.done_writing()

    async def ended(self) -> bool:
        """Whether the cloud has closed the stream, cleanly."""
        return await self._call.read() is grpc.aio.EOF

    async def _read(self) -> pb.DeliverResponse:
        async with asyncio.timeout(20):
            response = await self._call.read()
        if response is grpc.aio.EOF:
            raise EOFError(f"the stream ended: {await self._call.details()}")
        return response
