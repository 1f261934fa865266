"""The shared cache in a bucket: moto's S3 where it is installed (make test-fleet), over HTTP as the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_decoder.images.object_cache import ObjectCache
from tests.support.cloud.postgres import free_port

pytest.importorskip("obstore", reason="obstore is not installed (extra fleet)")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    program = shutil.which("moto_server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("moto is not installed (make test-fleet installs it)")
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([program, "-p", str(port)], stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    end = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/pictures", method="PUT"), timeout=5)
            break
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)
    yield "s3://pictures/cache"
    server.terminate()
    server.wait(10)


def test_pictures_in_a_bucket(bucket: str) -> None:
    one, two, digest = ObjectCache(bucket, 100), ObjectCache(bucket, 100), "cd" * 32
    assert one.get(digest, "png") is None and not one.has(digest, "png")
    assert one.put(digest, "png", b"picture") and two.get(digest, "png") == b"picture" and two.has(digest, "png")
    for number in range(4):
        one.put(f"{number}" * 64, "png", b"x" * 10)
    assert two.trim() >= 2 and two.total_bytes <= 100
    for variant in ("png", "webpw32"):
        one.put(digest, variant, b"picture")
        one.put("cd" * 31 + "ef", variant, b"a neighbour")
    assert two.remove([digest, "ab" * 32]) == 2 and two.remove([digest]) == 0
    assert one.get(digest, "webpw32") is None and one.get("cd" * 31 + "ef", "png") == b"a neighbour"


def test_a_bucket_that_is_away_costs_a_decode_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    cache = ObjectCache("s3://pictures", 100)
    assert cache.get("ab" * 32, "png") is None
    with pytest.raises(OSError, match="cannot write"):
        cache.put("ab" * 32, "png", b"picture")
    with pytest.raises(OSError, match="cannot remove"):
        cache.remove(["ab" * 32])
