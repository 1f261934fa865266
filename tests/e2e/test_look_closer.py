"""More of a picture, through the client and the command line: both services as processes on loopback."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from aeic_client import AsyncClient, Client, Problem
from aeic_tools.demo.client import request
from aeic_tools.demo.local_services import Pair
from tests.support.cli import aeic
from tests.support.services.pair_with_originals import pair_with_originals


@pytest.fixture(scope="module")
def pair(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both services; the edge keeps originals."""
    settings = {"AEIC_EDGE_ORIGINALS_KEY": "5a" * 32, "AEIC_EDGE_REQUEST_ORIGINAL_MAX_BYTES": "16000"}
    with pair_with_originals(tmp_path_factory.mktemp("originals"), tiny_bundle, **settings) as running:
        yield running


@pytest.fixture
def frame(pair: Pair, owl: bytes) -> uuid.UUID:
    """A frame of the owl, 768x512, of at most 1 kB, in the cloud."""
    accepted = json.loads(request(f"{pair.edge.http}/v1/frames?wait=delivered&target_bytes=1000", owl))
    return uuid.UUID(accepted["id"])


def test_the_client_asks_and_gets_a_frame(pair: Pair, frame: uuid.UUID) -> None:
    with Client(pair.cloud.http) as cloud:
        asked = cloud.ask(frame, region=(300, 100, 192, 128), max_bytes=8000)
        ended = cloud.request(asked)
        assert ended.state == "answered" and ended.answer == asked.id and 0 < ended.bytes <= 8000
        answer = cloud.frame(asked.id)
        assert (answer.parent, answer.kind) == (frame, "region") and answer.region is not None
        assert (answer.original_width, answer.original_height) == (192, 128)
        assert answer.bytes == ended.bytes and cloud.image(asked.id)[:4] == b"\x89PNG"
        refused = cloud.request(cloud.ask(frame, "original", max_bytes=16_001))
        assert (refused.state, refused.reason, refused.answer) == ("refused", "over-budget", None)
        assert [one.id for one in cloud.requests(frame)] == [refused.id, asked.id]
    status = json.loads(request(f"{pair.edge.http}/v1/status"))
    assert status["originals"]["frames"] >= 1 and status["originals"]["failures"] == 0
    assert b'aeic_edge_requests_total{outcome="answered"}' in request(f"{pair.edge.http}/metrics")


def test_an_original_is_a_file_and_a_new_picture_a_frame(pair: Pair, frame: uuid.UUID) -> None:
    with Client(pair.cloud.http) as cloud:
        ended = cloud.request(cloud.ask(frame, "original", region=(0, 0, 384, 256), max_bytes=16_000))
        assert ended.answer is not None, ended
        answer, file = cloud.frame(ended.answer), cloud.file(ended.answer)
        assert (answer.parent, answer.media_type, answer.bytes) == (frame, "image/jpeg", len(file))
        assert 8000 < len(file) <= 16_000
        with Image.open(io.BytesIO(file)) as image:
            assert image.size == (384, 256) == (answer.width, answer.height)
        with pytest.raises(Problem, match="/file"):
            cloud.image(ended.answer)
        now = cloud.request(cloud.ask(frame, "now", max_bytes=4000))
        assert now.answer is not None, now
        taken = cloud.frame(now.answer)
        assert (taken.parent, taken.kind, taken.width, taken.height) == (frame, "now", 160, 120)
        assert taken.captured_from == "clock" and cloud.image(taken.id)[:4] == b"\x89PNG"
        part = cloud.request(cloud.ask(taken.id, region=(0, 0, 80, 60)))
        assert part.state == "answered" and cloud.frame(part.id).parent == taken.id
    secret = [path.read_bytes() for path in pair.edge.log.parent.rglob("*.original")]
    assert secret and not any(b"source_id" in one or b"JFIF" in one for one in secret)


async def test_the_client_for_asyncio_does_the_same(pair: Pair, frame: uuid.UUID) -> None:
    async with AsyncClient(pair.cloud.http) as cloud:
        ended = await cloud.request(await cloud.ask(frame, "better", max_bytes=8000))
        assert ended.state == "answered" and (await cloud.requests(frame))[0] == ended


def test_the_command_line_writes_the_picture(pair: Pair, frame: uuid.UUID, tmp_path: Path) -> None:
    target = tmp_path / "gate.png"
    given = ["ask", str(frame), "--bytes", "8000", "-o", str(target), "--url", pair.cloud.http]
    code, _, said = aeic(*given, "--region", "0,0,256,192")
    assert code == 0, said
    with Image.open(target) as image:
        assert image.width / image.height == pytest.approx(256 / 192, rel=0.1)
    code, _, said = aeic(*given, "--region", "0,0,256,192")
    assert code and "exists" in said
    photograph = tmp_path / "gate.jpg"
    code, _, said = aeic(
        "ask", str(frame), "--original", "--bytes", "9000", "-o", str(photograph), "--url", pair.cloud.http
    )
    assert code == 0, said
    with Image.open(photograph) as image:
        assert image.format == "JPEG" and photograph.stat().st_size <= 9000
    wrong = tmp_path / "photograph.png"
    code, _, said = aeic("ask", str(frame), "--original", "--bytes", "9000", "-o", str(wrong), "--url", pair.cloud.http)
    assert code == 2 and "image/jpeg" in said and ".jpg" in said and not wrong.exists()
    gif = wrong.with_suffix(".gif")
    code, _, said = aeic("ask", str(frame), "--original", "--bytes", "9000", "-o", str(gif), "--url", pair.cloud.http)
    assert code == 2 and "image/jpeg" in said and not gif.exists()
    code, _, said = aeic(*given, "--deadline", "inf")
    assert code == 2 and "86400" in said
    code, _, said = aeic("ask", str(frame), "-o", "", "--url", pair.cloud.http)
    assert code == 2 and "-o" in said
    folder = tmp_path / "folder.png"
    folder.mkdir()
    code, _, said = aeic("ask", str(frame), "-f", "--bytes", "8000", "-o", str(folder), "--url", pair.cloud.http)
    with Client(pair.cloud.http) as cloud:
        answer = cloud.requests(frame)[0].answer
    assert code == 1 and f"/v1/frames/{answer}/image" in said and "cannot write" in said, said
    code, _, said = aeic(*given, "-f", "--now")
    assert code == 0, said
    with Image.open(target) as image:
        assert image.size == (160, 120)
    code, _, said = aeic(*given, "-f", "--now", "--original")
    assert code == 2 and "--now" in said
    code, _, said = aeic(*given, "-f", "--region", "1,2,3")
    assert code == 2 and "X,Y,W,H" in said
    code, _, said = aeic(*given, "-f", "--region", "700,0,256,192")
    assert code == 1 and "768x512" in said
