"""``aeic cloud --ray`` from the command line: it starts front ends and workers, and after SIGTERM nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import psutil
import pytest

from aeic.bundle import Bundle
from cloud_decoder.store.store import Store
from tests.fleet.chaos.camera import Camera
from tests.support.cloud.postgres import Postgres
from tests.support.frames import MakeFrame
from tests.support.roots import ROOT

pytest.importorskip("ray", reason="Ray is not installed (extra fleet-ray)")
pytest.importorskip("obstore", reason="obstore is not installed (extra fleet)")
pytestmark = pytest.mark.slow


@contextmanager
def typed(environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The command, once it says that everything is ready; nothing of it is left afterwards, whatever happened."""
    command = [sys.executable, "-m", "aeic_tools.cli", "cloud", "--ray"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    family: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"it ended with {process.wait()}; stderr says why"
        family = psutil.Process(process.pid).children(recursive=True)
        yield process, json.loads(line)
    finally:
        process.kill()
        process.wait()
        for one in family:
            if one.is_running():  # the same process, not another of its number
                one.kill()


def left_of(family: list[psutil.Process], seconds: float = 15.0) -> list[str]:
    """What still runs of these after so long."""
    _, alive = psutil.wait_procs(family, seconds)
    return [" ".join(one.cmdline()[:3]) for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def short_folder() -> Iterator[str]:
    """Ray's sockets lie deep in its folder, and their names have an end at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


async def test_it_comes_up_decodes_and_goes(
    bundle: Bundle, make_frame: MakeFrame, postgres: Postgres, tmp_path: Path, short_folder: str
) -> None:
    url = postgres.fresh()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": short_folder,
        "AEIC_CLOUD_DATABASE_URL": url,
        "AEIC_CLOUD_CACHE_URL": f"file://{tmp_path}/pictures",
        "AEIC_CLOUD_DATA_DIR": str(tmp_path / "data"),
        "AEIC_CLOUD_BUNDLE": str(bundle.path),
        "AEIC_CLOUD_PORT": "0",
        "AEIC_CLOUD_GRPC_PORT": "0",
        "AEIC_CLOUD_LEASE_SECONDS": "3",
        "AEIC_FLEET_FRONTS": "1",
        "AEIC_FLEET_MAX_WORKERS": "1",
    }
    first, second = [(uuid4(), make_frame(seed)) for seed in (1, 2)]

    async def send_and_see(said: dict[str, str], *frames: tuple[UUID, bytes]) -> None:
        camera = Camera(said["grpc"], bundle, "box")
        await camera.send(frames)
        async with httpx.AsyncClient(base_url=said["http"], timeout=60) as http:
            for id, _ in frames:
                answer = await http.get(f"/v1/frames/{id}/image?wait=50")
                while answer.status_code == 202:
                    answer = await http.get(f"/v1/frames/{id}/image?wait=50")
                assert answer.status_code == 200 and answer.content[:4] == b"\x89PNG"

    with typed(environment) as (process, said):
        assert said["service"] == "fleet"
        await send_and_see(said, first)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 4  # Ray's own, a front end, a worker
        process.send_signal(signal.SIGTERM)
        assert process.wait(45) == 0
        assert left_of(family) == []
    store = Store(url)
    counts = store.frames.counts()
    assert counts["done"] == 1 and sum(counts.values()) == 1

    with typed(environment) as (process, said):  # again, and this time it is killed: the database knows everything
        await send_and_see(said, first)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        # Its members go with it; two of Ray's own agents outlive such a death.
        assert not [one for one in left_of(family) if "Member" in one]
    with typed(environment) as (process, said):
        await send_and_see(said, first, second)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert store.frames.counts()["done"] == 2
    store.close()
