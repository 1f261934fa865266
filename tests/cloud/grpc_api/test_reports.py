"""What boxes say of themselves is in the metrics and in the list of sources, as long as they are connected."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.presence import Report
from cloud_decoder.service import Cloud
from tests.support.cloud.cloud import IngestClient, running_cloud
from tests.support.frames import MakeFrame, new_frame
from tests.support.waiting import until


def of_sources(page: str) -> dict[str, str]:
    """The metrics by source of a page, without those of silence."""
    return dict(re.findall(r"^(aeic_cloud_source_(?:backlog|healthy|info)\w*\{.*\}) (\S+)$", page, re.MULTILINE))


def report(cloud: Cloud, tenant: str = "", source: str = "box-1") -> Report | None:
    """The last report of a box."""
    box = cloud.presence.box(tenant, source)
    return None if box is None else box.report


async def test_a_report_is_exported_until_the_box_is_gone(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:

        async def exported() -> dict[str, str]:
            return of_sources((await http.get("/metrics")).text)

        async with IngestClient(cloud.grpc) as edge:
            assert (await edge.hello(bundle)).takes_reports
            info = 'aeic_cloud_source_info{software="test",source="box-1",tenant=""}'
            at_cloud = 'aeic_cloud_source_backlog_frames{at="cloud",source="box-1",tenant=""}'
            at_edge = 'aeic_cloud_source_backlog_frames{at="edge",source="box-1",tenant=""}'
            healthy = 'aeic_cloud_source_healthy{source="box-1",tenant=""}'
            assert await exported() == {info: "1.0", at_cloud: "0.0"}, "an earlier edge makes no reports"
            (source,) = (await http.get("/v1/sources")).json()["sources"]
            assert source["box"] == {"software": "test", "report": None, "warning": ""}

            await edge.raw(pb.DeliverRequest(report=pb.Report(waiting_frames=412, oldest_seconds=90)))
            await until(lambda: report(cloud))
            assert await exported() == {info: "1.0", at_cloud: "0.0", at_edge: "412.0", healthy: "1.0"}

            await edge.raw(pb.DeliverRequest(report=pb.Report(problem="the disk\n" + "x" * 500)))
            await until(lambda: (said := report(cloud)) and said.problem)
            assert await exported() == {info: "1.0", at_cloud: "0.0", at_edge: "0.0", healthy: "0.0"}
            (source,) = (await http.get("/v1/sources")).json()["sources"]
            assert source["box"]["report"]["problem"] == "the disk?" + "x" * 191
            await edge.finish()
            await edge.ended()
        await until(lambda: not cloud.presence.connected)
        assert await exported() == {at_cloud: "0.0"}
        (source,) = (await http.get("/v1/sources")).json()["sources"]
        assert source["box"] is None


async def test_frames_that_wait_to_be_decoded_are_counted_by_source(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with running_cloud(decoder, tmp_path, role="ingest") as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        rows = [new_frame(make_frame(seed), source="gate" if seed % 3 else "mast") for seed in range(6)]
        cloud.store.frames.add(rows, time.time())
        found = of_sources((await http.get("/metrics")).text)
        assert found == {
            'aeic_cloud_source_backlog_frames{at="cloud",source="gate",tenant=""}': "4.0",
            'aeic_cloud_source_backlog_frames{at="cloud",source="mast",tenant=""}': "2.0",
        }


async def test_the_number_of_series_is_limited(bundle: Bundle, decoder: Decoder, tmp_path: Path) -> None:
    async with (
        running_cloud(decoder, tmp_path, metrics_sources=1) as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
        IngestClient(cloud.grpc) as first,
        IngestClient(cloud.grpc) as second,
    ):
        await first.hello(bundle, "first")
        hello = pb.Hello(source_id="second", bundle_digest=bundle.digest, software='x"}\n' * 40)
        await second.raw(pb.DeliverRequest(hello=hello))
        await second._read()
        for edge in (first, second):
            await edge.raw(pb.DeliverRequest(report=pb.Report(waiting_frames=2**64 - 1)))
        await until(lambda: report(cloud, source="first") and report(cloud, source="second"))
        found = of_sources((await http.get("/metrics")).text)
        boxes = {name for name in found if 'at="cloud"' not in name}
        assert len(boxes) == 3 and all('source="second"' in name for name in boxes)
        assert 'aeic_cloud_source_info{software="other",source="second",tenant=""}' in boxes


async def test_with_tokens_no_source_is_named_unless_it_is_asked_for(
    bundle: Bundle, decoder: Decoder, tmp_path: Path
) -> None:
    async with (
        running_cloud(decoder, tmp_path, tokens="a:a-long-token") as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
        IngestClient(cloud.grpc) as edge,
    ):
        await edge.hello(bundle, token="a-long-token")
        await edge.raw(pb.DeliverRequest(report=pb.Report(waiting_frames=1)))
        await until(lambda: report(cloud, "a"))
        assert of_sources((await http.get("/metrics")).text) == {}
