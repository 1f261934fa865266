"""One trace from the POST at the edge to the picture in the cloud, its batch linked; and nothing when it is off."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
import pytest

from aeic.v1 import ingest_pb2 as pb
from aeic_service import tracing
from cloud_decoder.service import Cloud
from cloud_decoder.settings import Settings
from edge_encoder.http_api.routes import create_app
from edge_encoder.service import EdgeService
from edge_encoder.settings import EdgeSettings
from edge_encoder.spool.record import Record
from edge_encoder.uplink.stream import Stream
from tests.support.roots import ROOT

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Any:
    """What the SDK's exporter in memory has seen."""
    pytest.importorskip("opentelemetry.sdk", reason='the extra "tracing" is not installed')
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter.get_finished_spans
    tracing.use(None)


async def journey(folder: Path, bundle: Path, pictures: list[bytes]) -> list[str]:
    """The pictures through an edge and a cloud in this process; their ids, once each is decoded."""
    free: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "grpc_port": 0}
    cloud = Cloud(Settings(**free, data_dir=folder / "cloud", bundle=bundle, device="onnx"))
    await cloud.start()
    edge = EdgeService(EdgeSettings(data_dir=folder / "edge", bundle=bundle, cloud_address=cloud.grpc))
    await edge.start()
    try:
        transport = httpx.ASGITransport(create_app(edge))
        async with httpx.AsyncClient(transport=transport, base_url="http://edge") as http:
            posted = [http.post("/v1/frames", content=p, headers={"traceparent": CALLER}) for p in pictures]
            ids = [answer.json()["id"] for answer in await asyncio.gather(*posted)]
        for id in ids:
            row, image = await cloud.image_service.image("", UUID(id), "png", None, 30.0)
            assert image and row
        await asyncio.sleep(0.2)  # the spans of the last one are exported beside its answer
        return ids
    finally:
        await edge.stop()
        await cloud.stop()


async def test_one_trace_from_post_to_picture(spans: Any, tiny_bundle: Path, tmp_path: Path, owl: bytes) -> None:
    coffee = (ROOT / "examples" / "coffee.jpg").read_bytes()
    ids = await journey(tmp_path, tiny_bundle, [owl, coffee])
    found = spans()
    named: dict[str, list[Any]] = {}
    for one in found:
        named.setdefault(one.name, []).append(one)
    caller_trace, caller_span = (int(part, 16) for part in CALLER.split("-")[1:3])
    posts = named["edge.post"]
    assert len(posts) == 2 and all(post.context.trace_id == caller_trace for post in posts)
    assert all(post.parent.span_id == caller_span for post in posts)
    for stage in ("read", "analyse", "entropy", "spool"):
        assert {one.parent.span_id for one in named[f"edge.{stage}"]} == {post.context.span_id for post in posts}
    ingests = {one.attributes["aeic.frame"]: one for one in named["cloud.ingest"]}
    decodes = {one.attributes["aeic.frame"]: one for one in named["cloud.decode"]}
    assert set(ingests) == set(decodes) == set(ids)
    for id in ids:
        assert ingests[id].parent.span_id in {post.context.span_id for post in posts}
        assert decodes[id].parent.span_id == ingests[id].context.span_id
        assert decodes[id].context.trace_id == caller_trace
        below = {one.name for one in found if one.parent and one.parent.span_id == decodes[id].context.span_id}
        assert below == {"cloud.queue", "cloud.entropy", "cloud.device_wait", "cloud.synthesis", "cloud.image"}
    # The batch has a trace of its own, linked to each frame in it, and each frame's synthesis links back.
    linked = {link.context.span_id for batch in named["cloud.batch"] for link in batch.links}
    assert linked == {one.context.span_id for one in ingests.values()}
    batches = {batch.context.span_id for batch in named["cloud.batch"]}
    assert all(batch.parent is None for batch in named["cloud.batch"])
    for synthesis in named["cloud.synthesis"]:
        assert {link.context.span_id for link in synthesis.links} <= batches and synthesis.links
    assert all(one.start_time <= one.end_time for one in found)


def test_off_it_costs_no_byte_and_no_import() -> None:
    record = Record(UUID(int=7), b"frame", 16, 16, 0)
    tracing.keep(record.id, bytes(25))
    tracing.keep_current(record.id)
    assert not tracing.on() and tracing.kept(record.id) == b"" and tracing.span("x", 1.0) == b""
    stream: Any = SimpleNamespace(_settings=SimpleNamespace(source_id=""), _prompt=lambda _: False)
    sent = Stream._frame(stream, record)
    assert sent == pb.Frame(id=record.id.bytes, bitstream=b"frame", crc32=zlib.crc32(b"frame"))
    code = (
        "import sys, edge_encoder.uplink.uplink, cloud_decoder.worker.tracing\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_context_of_a_wrong_length_is_ignored(spans: Any) -> None:
    from cloud_decoder.grpc_api import ingest

    for context in (b"", b"x", bytes(24), bytes(26), bytes(10_000)):
        ingest.trace_arrival(UUID(int=1), context, 0.0)
    assert spans() == () and tracing.kept(UUID(int=1)) == b""
    for number in range(tracing.KEPT + 10):
        tracing.keep(UUID(int=number), bytes(24) + b"\1")
    assert tracing.kept(UUID(int=0)) == b"" and tracing.kept(UUID(int=tracing.KEPT)) != b""


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ValueError, match=r"\.\[tracing\]"):
        tracing.set_up("test")


def test_spans_leave_for_the_collector_that_is_named() -> None:
    """With the real exporter, against a collector of our own on loopback; the rest goes out when the program ends."""
    pytest.importorskip("opentelemetry.sdk", reason='the extra "tracing" is not installed')
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
    }
    code = "from aeic_service import tracing; tracing.set_up('aeic-test'); tracing.span('edge.read', 0.5)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    ((path, body),) = got
    assert path == "/v1/traces" and b"aeic-test" in body and b"edge.read" in body
