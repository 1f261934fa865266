"""Both services as processes on loopback, with an edge that keeps originals and has a camera."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aeic_tools.demo import local_services
from aeic_tools.demo.local_services import Pair
from tests.support.sources.http_camera import http_camera


@contextmanager
def pair_with_originals(folder: Path, bundle: Path, **settings: str) -> Iterator[Pair]:
    """``settings`` are variables of the edge beside those that are needed."""
    settings = {"AEIC_EDGE_ORIGINALS_MAX_BYTES": "10000000", "AEIC_EDGE_CAMERA_FPS": "0.01"} | settings
    with http_camera() as camera, local_services.cloud(folder, folder, bundle) as cloud:
        settings["AEIC_EDGE_CAMERA_URL"] = f"{camera.url}/snap.jpg"
        with local_services.edge(folder, folder, cloud.addresses["grpc"], bundle, 0, **settings) as edge:
            yield Pair(edge, cloud)
