"""A generator under the control of a test, a cloud in this process or in one of its own, and a client of its ingest."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast
from uuid import UUID

import grpc
import httpx
import numpy as np

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from aeic.v1 import ingest_pb2_grpc as pb_grpc
from cloud_decoder.inference.backend import GeneratorBackend
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from cloud_decoder.inference.onnx_backend import OnnxGenerator
from cloud_decoder.metrics import Metrics
from cloud_decoder.service import Cloud
from cloud_decoder.settings import Settings
from cloud_decoder.store.store import NewFrame
from cloud_decoder.worker.worker import Worker
from tests.support.frames import MakeFrame, new_frame
from tests.support.waiting import until


class FakeGenerator(GeneratorBackend):
    """Runs the tiny bundle's synthesis, remembers its batches, and fails or waits as a test wants."""

    def __init__(self, bundle: Bundle) -> None:
        self._inner: Callable[[np.ndarray], np.ndarray] = OnnxGenerator(bundle.path, 1)
        self.batches: list[tuple[int, ...]] = []
        self.most: int | None = None  # a larger batch runs out of memory
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


def metric(metrics: Metrics, name: str, **labels: str) -> float:
    """The value of the cloud's metric ``aeic_cloud_<name>``; 0 if it has not been set."""
    return metrics.registry.get_sample_value(f"aeic_cloud_{name}", labels) or 0.0


def jobs_of(cloud: Cloud) -> Mapping[str, object]:
    """The jobs of the cloud's own worker, by the digest of their frames."""
    assert isinstance(cloud.backend, Worker)
    return cloud.backend.scheduler.jobs


@asynccontextmanager
async def running_cloud(decoder: Decoder, data_dir: Path, **changed: Any) -> AsyncIterator[Cloud]:
    """A whole cloud on free loopback ports in this process."""
    cloud = Cloud(
        Settings(**{"host": "127.0.0.1", "port": 0, "grpc_port": 0, "data_dir": data_dir, **changed}), decoder
    )
    await cloud.start()
    try:
        yield cloud
    finally:
        await cloud.stop()


@dataclass
class FullCloud:
    """A cloud whose queue is full, with clients of both protocols."""

    cloud: Cloud
    http: httpx.AsyncClient
    grpc: Any
    """The stub of the decode service, whose generated types are those without asyncio."""
    frames: list[bytes]
    """Frames that the cloud does not have yet."""


@asynccontextmanager
async def full_cloud(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, data_dir: Path
) -> AsyncIterator[FullCloud]:
    """A cloud whose device is stopped and whose eight places in the queue are taken. At the end the device works again,
    and the eight callers must be answered."""
    async with (
        running_cloud(decoder, data_dir, max_queue=8) as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
        grpc.aio.insecure_channel(cloud.grpc) as channel,
    ):
        generator.gate.clear()
        frames = [make_frame(seed, 64, 64) for seed in range(28)]
        accepted = [asyncio.create_task(http.post("/v1/decode", content=data)) for data in frames[:8]]
        await until(lambda: len(jobs_of(cloud)) == 8)
        yield FullCloud(cloud, http, pb_grpc.DecodeServiceStub(channel), frames[8:])
        generator.gate.set()
        assert {(await answer).status_code for answer in accepted} == {200}


@contextmanager
def cloud_process(
    bundle: Bundle, data_dir: Path, **settings: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A cloud in a process of its own, and the line that it printed when it was ready; killed at the end."""
    environment = os.environ | {"AEIC_CLOUD_BUNDLE": str(bundle.path), "AEIC_CLOUD_DATA_DIR": str(data_dir)} | settings
    command = [sys.executable, "-m", "cloud_decoder", "--port", "0"]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None and running.stderr is not None
        line = running.stdout.readline()
        assert line, running.stderr.read()
        yield running, json.loads(line)
    finally:
        running.kill()
        running.communicate()


class CloudThread:
    """A cloud in a thread of its own, for clients without an event loop; ``put`` stores a frame as ingest does."""

    def __init__(self, bundle: Bundle, folder: Path, **changed: Any) -> None:
        decoder = Decoder(bundle, OnnxGenerator(bundle.path, 1), settings=DecoderSettings(threads=1))
        settings = {"host": "127.0.0.1", "port": 0, "grpc_port": 0, "data_dir": folder, **changed}
        self.cloud = Cloud(Settings(**settings), decoder)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self._run(self.cloud.start())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def put(self, data: bytes, **changed: Any) -> NewFrame:
        """Store the frame ``data``; the record that was stored."""
        new = new_frame(data, **changed)
        self.cloud.store.frames.add([new], time.time())
        self.loop.call_soon_threadsafe(self.cloud.commits.announce, [new])
        return new

    def stop(self) -> None:
        """Drain the cloud and end its thread."""
        self._run(self.cloud.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)


class IngestClient:
    """The edge's end of an ingest stream, one message at a time."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options)
        self._call: Any = pb_grpc.IngestServiceStub(
            self._channel
        ).Deliver()  # the stub's types are those without asyncio

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        await self._channel.close()

    async def hello(
        self,
        bundle: Bundle,
        source: str = "box-1",
        token: str = "",
        digest: bytes | None = None,
        process: bytes = b"",
    ) -> pb.Welcome:
        """Open the stream."""
        given = bundle.digest if digest is None else digest
        message = pb.Hello(source_id=source, bundle_digest=given, software="test", token=token, process_id=process)
        await self._call.write(pb.DeliverRequest(hello=message))
        return (await self._read()).welcome

    async def send(self, data: bytes, id: UUID, crc: int | None = None, **more: Any) -> None:
        """Send a frame; ``ack`` reads its answer."""
        frame = pb.Frame(id=id.bytes, bitstream=data, crc32=zlib.crc32(data) if crc is None else crc, **more)
        await self._call.write(pb.DeliverRequest(frame=frame))

    async def ack(self) -> pb.Ack:
        """The next answer; EOFError if the cloud has closed the stream."""
        return (await self._read()).ack

    async def raw(self, request: pb.DeliverRequest) -> None:
        """Send any message."""
        await self._call.write(request)

    async def finish(self) -> None:
        """Close this end of the stream."""
        await self._call.done_writing()

    async def ended(self) -> bool:
        """Whether the cloud has closed the stream, cleanly."""
        return await self._call.read() is grpc.aio.EOF

    async def _read(self) -> pb.DeliverResponse:
        async with asyncio.timeout(20):
            response = await self._call.read()
        if response is grpc.aio.EOF:
            raise EOFError(f"the stream ended: {await self._call.details()}")
        return cast(pb.DeliverResponse, response)
