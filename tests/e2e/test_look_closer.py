"""More of a picture, through the client and the command line: both services as processes on loopback."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from aeic_client import AsyncClient, Client
from aeic_tools import local_services
from aeic_tools.demo_client import request
from aeic_tools.local_services import Pair
from tests.support.cli import aeic


@pytest.fixture(scope="module")
def keeping(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both services; the edge keeps originals."""
    folder = tmp_path_factory.mktemp("keeping")
    settings = {"AEIC_EDGE_ORIGINALS_MAX_BYTES": "10000000"}
    with (
        local_services.cloud(folder, folder, tiny_bundle) as receiver,
        local_services.edge(folder, folder, receiver.addresses["grpc"], tiny_bundle, 0, **settings) as sender,
    ):
        yield Pair(sender, receiver)


@pytest.fixture
def frame(keeping: Pair, owl: bytes) -> uuid.UUID:
    """A frame of the owl, 768x512, of at most 1 kB, in the cloud."""
    accepted = json.loads(request(f"{keeping.edge.http}/v1/frames?wait=delivered&target_bytes=1000", owl))
    return uuid.UUID(accepted["id"])


def test_the_client_asks_and_gets_a_frame(keeping: Pair, frame: uuid.UUID) -> None:
    with Client(keeping.cloud.http) as cloud:
        asked = cloud.ask(frame, region=(300, 100, 192, 128), max_bytes=8000)
        ended = cloud.request(asked)
        assert ended.state == "answered" and ended.answer == asked.id and 0 < ended.bytes <= 8000
        answer = cloud.frame(asked.id)
        assert (answer.parent, answer.kind) == (frame, "region") and answer.region is not None
        assert (answer.original_width, answer.original_height) == (192, 128)
        assert answer.bytes == ended.bytes and cloud.image(asked.id)[:4] == b"\x89PNG"
        refused = cloud.request(cloud.ask(frame, "now"))
        assert (refused.state, refused.reason, refused.answer) == ("refused", "unsupported", None)
        assert [one.id for one in cloud.requests(frame)] == [refused.id, asked.id]
    status = json.loads(request(f"{keeping.edge.http}/v1/status"))
    assert status["originals"]["frames"] >= 1 and status["originals"]["failures"] == 0
    assert b'aeic_edge_requests_total{outcome="answered"}' in request(f"{keeping.edge.http}/metrics")


async def test_the_client_for_asyncio_does_the_same(keeping: Pair, frame: uuid.UUID) -> None:
    async with AsyncClient(keeping.cloud.http) as cloud:
        ended = await cloud.request(await cloud.ask(frame, "better", max_bytes=8000))
        assert ended.state == "answered" and (await cloud.requests(frame))[0] == ended


def test_the_command_line_writes_the_picture(keeping: Pair, frame: uuid.UUID, tmp_path: Path) -> None:
    target = tmp_path / "gate.png"
    given = ["ask", str(frame), "--bytes", "8000", "-o", str(target), "--url", keeping.cloud.http]
    code, _, said = aeic(*given, "--region", "0,0,256,192")
    assert code == 0, said
    with Image.open(target) as image:
        assert image.width / image.height == pytest.approx(256 / 192, rel=0.1)
    code, _, said = aeic(*given, "--region", "0,0,256,192")
    assert code and "exists" in said
    code, _, said = aeic(*given, "-f", "--region", "1,2,3")
    assert code == 2 and "X,Y,W,H" in said
    code, _, said = aeic(*given, "-f", "--region", "700,0,256,192")
    assert code == 1 and "768x512" in said
