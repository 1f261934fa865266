"""The JavaScript client of docs/examples in Node.js, against a cloud."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest

from aeic.bundle import Bundle
from tests.support.cloud.cloud import CloudThread
from tests.support.frames import MakeFrame
from tests.support.roots import DOCS

CLIENT = DOCS / "examples" / "aeic_client.mjs"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="no Node.js (Debian: nodejs): `make packages-client` installs it")


def start(url: str, *arguments: str, token: str = "") -> subprocess.Popen[str]:
    environment = {"AEIC_TOKEN": token} if token else {}
    command = [str(NODE), str(CLIENT), url, *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(url: str, *arguments: str, token: str = "") -> tuple[int, str, str]:
    running = start(url, *arguments, token=token)
    out, error = running.communicate(timeout=60)
    return running.returncode, out, error


def test_it_lists_fetches_and_deletes(bundle: Bundle, make_frame: MakeFrame, tmp_path: Path) -> None:
    started = CloudThread(bundle, tmp_path / "cloud", tokens="a:a-long-token")
    try:
        url = started.cloud.http
        rows = [started.put(make_frame(seed), tenant="a") for seed in range(3)]
        target = tmp_path / "picture.webp"
        assert run(url, "image", str(rows[0].id), str(target), token="a-long-token") == (0, "", "")
        assert target.read_bytes()[8:12] == b"WEBP"
        assert run(url, "delete", str(rows[1].id), token="a-long-token") == (0, "", "")
        code, listed, _ = run(url, "list", token="a-long-token")
        assert code == 0 and [line.split()[0] for line in listed.splitlines()] == [str(one.id) for one in rows[::-1]]
        assert f"{rows[1].id} pruned" in listed
        assert run(url, "list", token="a-wrong-token")[2].startswith("HTTP 401: ")
        assert run(url, "image", str(uuid4()), str(target), token="a-long-token")[2].startswith("HTTP 404: ")
    finally:
        started.stop()


def test_filters_may_be_dates_or_undefined(bundle: Bundle, make_frame: MakeFrame, tmp_path: Path) -> None:
    started = CloudThread(bundle, tmp_path)
    try:
        stored = started.put(make_frame(1), source="a & b")
        script = """const { Cloud } = await import(process.argv[1]);
            for (const days of [-1, 1]) {
                const since = new Date(Date.now() + 864e5 * days);
                const filters = { source: "a & b", state: undefined, rate: null, since };
                for await (const one of new Cloud(process.argv[2]).frames(filters)) console.log(days, one.id);
            }"""
        command = [str(NODE), "--input-type=module", "--eval", script, CLIENT.as_uri(), started.cloud.http]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr) == (f"-1 {stored.id}\n", "")
    finally:
        started.stop()


def test_it_follows_over_a_restart_and_misses_nothing(bundle: Bundle, make_frame: MakeFrame, tmp_path: Path) -> None:
    first = CloudThread(bundle, tmp_path)
    port = int(first.cloud.http.rsplit(":", 1)[1])
    following = start(first.cloud.http, "follow")
    assert following.stdout is not None
    limit = threading.Timer(100, following.kill)
    limit.start()
    try:
        while not len(first.cloud.event_bus):
            time.sleep(0.02)
        time.sleep(0.3)
        ids = [first.put(make_frame(1)).id]
        seen = [following.stdout.readline().split()[:2] for _ in range(2)]
        first.stop()
        while_away = CloudThread(bundle, tmp_path)  # on another port
        ids.append(while_away.put(make_frame(2)).id)
        while while_away.cloud.store.frames.counts()["done"] < 2:
            time.sleep(0.05)
        while_away.stop()
        third = CloudThread(bundle, tmp_path, port=port)
        seen += [following.stdout.readline().split()[:2] for _ in range(2)]
        ids.append(third.put(make_frame(3)).id)
        seen += [following.stdout.readline().split()[:2] for _ in range(2)]
        third.stop()
    finally:
        limit.cancel()
        following.kill()
        following.communicate()
    assert seen == [[kind, str(id)] for id in ids for kind in ("received", "done")]
