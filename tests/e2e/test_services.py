"""A picture goes in at the edge and comes out of the cloud; and what happens when something is in the way."""

from __future__ import annotations

import io
import json
import socket
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aeic_tools.demo import local_services
from aeic_tools.demo.client import RequestFailed, request, travel
from aeic_tools.demo.local_services import Pair


def get(url: str) -> Any:
    return json.loads(request(url))


def wait_for_state(edge: str, frame: str, wanted: str, seconds: float = 30) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while True:
        state: dict[str, Any] = get(f"{edge}/v1/frames/{frame}")
        if state["state"] == wanted:
            return state
        assert time.monotonic() < deadline, f"still {state}"
        time.sleep(0.05)


def test_a_picture_travels(pair: Pair, owl: bytes) -> None:
    journey = travel(pair, owl)
    accepted = journey.accepted
    assert (accepted["width"], accepted["height"]) == (768, 512)
    assert accepted["bpp"] == pytest.approx(8 * accepted["bytes"] / (768 * 512), rel=1e-3)
    assert accepted["encode_ms"] > 0 and journey.decode_ms > 0
    with Image.open(io.BytesIO(journey.image)) as image:
        assert (image.size, image.mode, image.format) == ((768, 512), "RGB", "PNG")
    frame = request(f"{pair.cloud.http}/v1/frames/{accepted['id']}/bitstream")
    assert len(frame) == accepted["bytes"] and frame[0] == 0xAE
    assert wait_for_state(pair.edge.http, accepted["id"], "delivered")


def test_the_frame_is_in_the_clouds_list_and_decodes_by_itself(pair: Pair, owl: bytes) -> None:
    journey = travel(pair, owl)
    listed = get(f"{pair.cloud.http}/v1/frames?limit=10")
    assert journey.accepted["id"] in json.dumps(listed)
    frame = request(f"{pair.cloud.http}/v1/frames/{journey.accepted['id']}/bitstream")
    again = request(f"{pair.cloud.http}/v1/decode?format=png", frame)
    with Image.open(io.BytesIO(again)) as one, Image.open(io.BytesIO(journey.image)) as other:
        assert one.tobytes() == other.tobytes()


def test_no_other_user_can_read_frames_and_pictures(
    pair: Pair, owl: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    travel(pair, owl)
    folder = next(tmp_path_factory.getbasetemp().glob("pair*"))
    files = [path for at in ("cloud/store.db*", "edge/spool.sqlite3*", "cloud/cache/*/*") for path in folder.glob(at)]
    assert len(files) > 4
    assert [path for path in files if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("picture_format", ["webp", "jpeg"])
def test_other_formats(pair: Pair, owl: bytes, picture_format: str) -> None:
    identity = travel(pair, owl).accepted["id"]
    data = request(f"{pair.cloud.http}/v1/frames/{identity}/image?format={picture_format}&wait=30")
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == (picture_format.upper(), (768, 512))


def test_the_same_key_twice_is_one_frame(pair: Pair, owl: bytes) -> None:
    key = str(uuid.uuid4())
    url = f"{pair.edge.http}/v1/frames"
    ids = {json.loads(request(url, owl, Idempotency_Key=key))["id"] for _ in range(2)}
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", {400, 415, 422}), (b"just text", {415, 422}), (b"\xff\xd8\xff\xe0 cut short", {415, 422})],
)
def test_bad_pictures_are_refused_and_harm_nothing(pair: Pair, owl: bytes, body: bytes, status: set[int]) -> None:
    with pytest.raises(RequestFailed) as refused:
        request(f"{pair.edge.http}/v1/frames", body, Content_Type="image/jpeg")
    assert refused.value.status in status and refused.value.detail
    assert travel(pair, owl).image


def test_bad_frames_and_ids_are_refused(pair: Pair) -> None:
    for body in (b"", b"just text", b"\xae\x20" + bytes(60)):
        with pytest.raises(RequestFailed) as refused:
            request(f"{pair.cloud.http}/v1/decode", body)
        assert 400 <= refused.value.status < 500
    for identity, statuses in ((str(uuid.uuid4()), {404}), ("not-an-id", {404, 422, 400})):
        for service in (pair.edge.http, pair.cloud.http):
            with pytest.raises(RequestFailed) as refused:
                request(f"{service}/v1/frames/{identity}")
            assert refused.value.status in statuses


def test_health_readiness_and_metrics(pair: Pair, owl: bytes) -> None:
    travel(pair, owl)
    for service, prefix in ((pair.edge, "aeic_edge_"), (pair.cloud, "aeic_cloud_")):
        for path in ("healthz", "readyz"):
            request(f"{service.http}/{path}")
        names = [
            line.split()[2] for line in request(f"{service.http}/metrics").decode().splitlines() if "# TYPE" in line
        ]
        assert sum(name.startswith(prefix) for name in names) >= 3, names


def test_a_cloud_that_is_down_loses_nothing(tiny_bundle: Path, tmp_path: Path, owl: bytes) -> None:
    """The edge says that it spooled the frame, survives its own restart, and delivers once the cloud is up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    with local_services.edge(tmp_path, tmp_path, address, tiny_bundle) as edge:
        accepted = json.loads(request(f"{edge.http}/v1/frames", owl))
        assert accepted["state"] == "spooled"
        assert get(f"{edge.http}/v1/frames/{accepted['id']}")["state"] in ("spooled", "sending")
    with local_services.edge(tmp_path, tmp_path, address, tiny_bundle) as edge:
        assert get(f"{edge.http}/v1/frames/{accepted['id']}")["state"] in ("spooled", "sending")
        with local_services.cloud(tmp_path, tmp_path, tiny_bundle, grpc_port=port) as cloud:
            wait_for_state(edge.http, accepted["id"], "delivered")
            image = request(f"{cloud.http}/v1/frames/{accepted['id']}/image?format=png&wait=30")
            assert image[:4] == b"\x89PNG"


def test_services_stop_cleanly(tiny_bundle: Path, tmp_path: Path) -> None:
    with local_services.pair(tmp_path, tmp_path, tiny_bundle) as running:
        pass
    assert (running.edge.process.returncode, running.cloud.process.returncode) == (0, 0)


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(local_services.ServiceFailed, match="bundle"),
        local_services.cloud(tmp_path, tmp_path, tmp_path / "no-such-bundle"),
    ):
        pass
