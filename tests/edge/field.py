"""The field: cameras, a watched folder and POSTs at once, with a dead camera and poisoned files among them.

    python -m tests.edge.field --seconds 600

An edge process with three cameras (a Motion JPEG stream, a snapshot URL and one that does not answer), a watched folder
in which a slow writer leaves pictures in several folders, and clients that post. Among the files are a decompression
bomb, a GIF called .jpg, one that cannot be read and one whose name is not UTF-8. In the end every good picture must be
in the cloud once and under its own source, the cameras must have sent what their rates allow, the dead camera must be
shown as down and nothing else, and no password may be in the log. The last line of output is one JSON object; the exit
code is 0 only if all of that holds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.support.edge.fakes import FakeCloud, serving
from tests.support.models.tiny_bundle import write_tiny_bundle
from tests.support.pictures import claims, gif, picture
from tests.support.roots import ROOT
from tests.support.sources.http_camera import http_camera

GATE_FPS, QUAY_FPS = 2.0, 1.0
SECRET = "se\\cret"


class Field:
    """One run of `seconds`."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.seconds = seconds
        self.folder, self.inbox, self.log = folder, folder / "in", folder / "edge.log"
        self.cloud = FakeCloud()
        self.posted = 0
        self.written = 0
        self.delivering = 0.0  # seconds that the cameras had

    async def run(self) -> dict[str, Any]:
        """The result, ready for JSON; `problems` is empty when all holds."""
        self.inbox.mkdir(parents=True)
        with http_camera() as camera:
            async with serving(self.cloud) as address:
                edge = await self._start(camera.url, address)
                try:
                    return await self._observe(edge)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        edge.kill()
                    await edge.wait()

    async def _start(self, camera: str, cloud: str) -> asyncio.subprocess.Process:
        config = self.folder / "edge.toml"
        config.write_text(
            f"""
            source_id = "box"
            port = 0
            data_dir = "{self.folder / "spool"}"
            bundle = "{write_tiny_bundle(self.folder / "bundle")}"
            cloud_address = "{cloud}"
            backoff_max_seconds = 2.0
            [[cameras]]
            name = "gate"
            url = "{camera}/stream"
            fps = {GATE_FPS}
            max_side = 96
            [[cameras]]
            name = "quay"
            url = "{camera}/snap.jpg"
            fps = {QUAY_FPS}
            [[cameras]]
            name = "mast"
            url = 'rtsp://user:{SECRET}@127.0.0.1:1/stream'
            timeout_seconds = 2.0
            [[folders]]
            name = "ftp"
            path = "{self.inbox}"
            seconds = 0.2
            settle_seconds = 0.5
            recursive = true
            """
        )
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AEIC_")}
        with self.log.open("wb") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "edge_encoder",
                cwd=ROOT,
                env={**clean, "AEIC_EDGE_CONFIG": str(config)},
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )

    async def _observe(self, edge: asyncio.subprocess.Process) -> dict[str, Any]:
        assert edge.stdout is not None
        url = json.loads(await asyncio.wait_for(edge.stdout.readline(), 120))["http"]
        begin = time.monotonic()
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            await self._until(client, lambda status: _states(status) == _EXPECTED_STATES)
            self._poison()
            end = time.monotonic() + self.seconds
            await asyncio.gather(self._post(client, end), self._write(end))
            await self._until(client, lambda status: self._by_source()["box/ftp"] >= self.written)
            status = (await client.get("/v1/status")).json()
            metrics = (await client.get("/metrics")).text
            ready = await client.get("/readyz")
            self.delivering = time.monotonic() - begin
        edge.terminate()
        code = await asyncio.wait_for(edge.wait(), 60)
        return self._judge(status, metrics, ready, code)

    async def _until(self, client: httpx.AsyncClient, holds: Any) -> None:
        deadline = time.monotonic() + 60
        while not holds((await client.get("/v1/status")).json()):
            if time.monotonic() > deadline:
                return  # the judgement says what is missing
            await asyncio.sleep(0.2)

    def _poison(self) -> None:
        (self.inbox / "bomb.png").write_bytes(claims(60_000, 60_000))
        (self.inbox / "gif.jpg").write_bytes(gif())
        (self.inbox / "memory.jpg").symlink_to("/proc/self/mem")
        (self.inbox / os.fsdecode(b"caf\xe9.png")).write_bytes(picture(form="PNG", seed=999_999))
        self.written += 1

    async def _post(self, client: httpx.AsyncClient, end: float) -> None:
        while time.monotonic() < end:
            answer = await client.post("/v1/frames", content=picture(seed=self.posted))
            if answer.status_code == 202:
                self.posted += 1
            await asyncio.sleep(0.3)

    async def _write(self, end: float) -> None:
        while time.monotonic() < end:
            number = self.written
            folder = self.inbox / f"{100 + number % 3}CANON"
            folder.mkdir(exist_ok=True)
            data = picture(seed=1_000_000 + number)
            with (folder / f"IMG_{number % 5}-{number}.jpg").open("wb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
                await asyncio.sleep(0.3)
                file.write(data[len(data) // 2 :])
            self.written += 1

    def _by_source(self) -> Counter[str]:
        return Counter(message.source_id or "box" for message in list(self.cloud.messages.values()))

    def _judge(self, status: dict[str, Any], metrics: str, ready: httpx.Response, code: int) -> dict[str, Any]:
        frames = self._by_source()
        problems = []

        def check(what: str, found: object, right: bool) -> None:
            if not right:
                problems.append(f"{what}: {found}")

        check("posted and delivered", (self.posted, frames["box"]), frames["box"] == self.posted > 0)
        check("written and delivered", (self.written, frames["box/ftp"]), frames["box/ftp"] == self.written > 1)
        for name, fps in (("gate", GATE_FPS), ("quay", QUAY_FPS)):
            most = self.delivering * fps + 2
            check(f"frames of {name}", frames[f"box/{name}"], self.seconds * fps / 3 <= frames[f"box/{name}"] <= most)
        check("frames of the dead camera", frames["box/mast"], not frames["box/mast"])
        check("sources", set(frames), set(frames) == {"box", "box/ftp", "box/gate", "box/quay"})
        check("states", _states(status), _states(status) == _EXPECTED_STATES)
        details = {source["name"]: source["detail"] for source in status["sources"]}
        check("detail of the dead camera", details["mast"], "Connection refused" in details["mast"])
        refused = sorted(path.name for path in (self.inbox / "refused").iterdir())
        check("refused", refused, refused == ["bomb.png", "gif.jpg"])
        check("left", [path.name for path in self.inbox.glob("*.*")], (self.inbox / "memory.jpg").is_symlink())
        up = {name: float(value) for name, value in re.findall(r'aeic_edge_source_up\{source="(\w+)"\} (\S+)', metrics)}
        check("aeic_edge_source_up", up, up == {"gate": 1.0, "quay": 1.0, "mast": 0.0, "ftp": 1.0})
        ages = re.findall(r'aeic_edge_source_last_picture_age_seconds\{source="(\w+)"\} (\S+)', metrics)
        check(
            "ages", ages, {name for name, _ in ages} == {"gate", "quay", "ftp"} and all(float(a) < 30 for _, a in ages)
        )
        check("readyz", ready.text, ready.status_code == 200 and set(ready.json()["sources_down"]) == {"mast"})
        check("restarts", status["tasks"], all(not task["restarts"] for task in status["tasks"]))
        log = self.log.read_text(errors="replace")
        check("password in the log", "", SECRET not in log and json.dumps(SECRET)[1:-1] not in log)
        lines = [line for line in log.splitlines() if "memory.jpg" in line]
        check("lines for the file that cannot be read", lines, len(lines) == 1)
        check("exit code", code, code == 0)
        return {
            "seconds": round(self.delivering, 1),
            "posted": self.posted,
            "written": self.written,
            "frames": dict(frames),
            "log_lines": len(log.splitlines()),
            "problems": problems,
        }


_EXPECTED_STATES = {"gate": "up", "quay": "up", "mast": "down", "ftp": "up"}


def _states(status: dict[str, Any]) -> dict[str, str]:
    return {source["name"]: source["state"] for source in status["sources"]}


def main() -> int:
    """Exit code 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(Field(Path(folder), given.seconds).run())
    print(json.dumps(result))
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
