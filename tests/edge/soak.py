"""The soak: both services as processes, a stream of pictures, and random faults.

    python -m tests.edge.soak --frames 2000 --seed 1

The edge and the cloud are killed with -9 and started again, connections are cut and stalled half-open in a proxy
between them, and the edge's disk fills up (its file size limit is pulled down while it runs), fails with EIO or turns
read-only. The spool is damaged so that the next start has to recover it, and the edge is killed in the middle of that.
The wall clocks of both jump by seconds, months and years. Clients post each picture under an id of their own until it
is acknowledged with 202, in part in bursts with wait=received, so that kills find originals that are not encoded yet.
In the end every acknowledged frame must be in the cloud exactly once, bit for bit, and none in quarantine.
With --requests, clients of the cloud also ask for more of these pictures, in all kinds: regions, better quality,
originals as files in pieces, and new pictures of a camera, to which faults happen as to the rest. They are spread over
the run, and the box keeps the originals of about five frames in six, so that some are gone when they are asked for. A
piece of a file is sent only while no frame waits, so the clients pause every now and then. Each request must end once,
answered by a frame or a file of its own, or refused with a reason; every kind must have been answered.
The last line of output is one JSON object; the exit code is 0 only if nothing was lost or duplicated.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import resource
import sqlite3
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

import httpx

from aeic.identifiers import new_id
from aeic.pixels import picture_size
from edge_encoder.encoding.encoder import Encoder
from tests.support.edge.fakes import Proxy
from tests.support.models.tiny_bundle import write_tiny_bundle
from tests.support.pictures import picture
from tests.support.services.faulty_process import Control
from tests.support.services.restarted import Process
from tests.support.sources.http_camera import http_camera

PICTURES = 48
KINDS = {"better", "region", "original", "now"}
CAMERA_HEIGHT = 120
"""Of the pictures of the camera, and of no other. Those that were not asked for are not counted."""
CLIENTS = 6
BURST = 8
ORIGINAL_BYTES = 1500
"""Of the ring for each frame. A file there has about 1,800."""
PAUSE_FRAMES = 300
PAUSE_SECONDS = 20.0
"""A pause of the clients ends two seconds after the edge has delivered all frames, or after so long."""


class Soak:
    """One run. `acknowledged` maps frame id to the number of the picture posted under it."""

    def __init__(self, folder: Path, frames: int, seed: int, chaos: bool, requests: int = 0) -> None:
        self.frames, self.chaos, self.requests = frames, chaos, requests
        self.asked: dict[str, str] = {}  # the request's id -> the path of its state
        self.asked_about: set[str] = set()  # frames
        self.outcomes: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()  # of the requests that were answered
        self.rng = random.Random(seed)
        bundle = write_tiny_bundle(folder / "bundle")
        self.pictures = [picture(64 + 16 * (n % 5), 64, seed=n) for n in range(PICTURES)]
        encoder = Encoder.from_bundle(bundle, threads=1)
        self.expected = [encoder.encode(data).data for data in self.pictures]
        self.cloud = Process(
            "cloud_decoder",
            {
                "AEIC_BUNDLE": str(bundle),
                "AEIC_CLOUD_DATA_DIR": str(folder / "cloud"),
                "AEIC_CLOUD_DEVICE": "onnx",
                "AEIC_CLOUD_EAGER": "all",
                "AEIC_CLOUD_RETENTION_DAYS": "30",
                "AEIC_CLOUD_REQUEST_BYTES_PER_HOUR": str(1 << 40),
                "AEIC_CLOUD_PORT": "0",
                "AEIC_CLOUD_GRPC_PORT": "0",
            },
            folder / "cloud.log",
            control=folder / "cloud.control",
        )
        self.edge = Process(
            "edge_encoder",
            {
                "AEIC_BUNDLE": str(bundle),
                "AEIC_EDGE_DATA_DIR": str(folder / "edge"),
                "AEIC_EDGE_PORT": "0",
                "AEIC_EDGE_THREADS": "1",
                "AEIC_EDGE_ORIGINALS_MAX_BYTES": str(ORIGINAL_BYTES * frames if requests else 0),
                "AEIC_EDGE_ORIGINALS_MAX_AGE_SECONDS": "0",  # else each jump of the clock deletes them all
                "AEIC_EDGE_REQUEST_BYTES_PER_HOUR": str(1 << 40),
                "AEIC_EDGE_ORIGINALS_KEY": "5a" * 32,
                "AEIC_EDGE_CAMERA_FPS": "1",
                "AEIC_EDGE_CAMERA_MOTION": "1",  # its first picture is sent, and then only what is asked for
                "AEIC_EDGE_CAMERA_STILL_SECONDS": "0",
                "AEIC_EDGE_HISTORY_FRAMES": str(10 * frames),
                "AEIC_EDGE_ACK_TIMEOUT_SECONDS": "2",
                "AEIC_EDGE_BACKOFF_MIN_SECONDS": "0.05",
                "AEIC_EDGE_BACKOFF_MAX_SECONDS": "1",
                "AEIC_EDGE_DRAIN_TIMEOUT_SECONDS": "30",
            },
            folder / "edge.log",
            control=folder / "edge.control",
        )
        self.machines = [Control(folder / "edge.control"), Control(folder / "cloud.control")]
        self.acknowledged: dict[uuid.UUID, int] = {}
        self.answers: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.originals_at_kills = 0  # acknowledged, not encoded yet, found on disk after kill -9
        self._spool = folder / "edge" / "spool.sqlite3"
        self._next = 0
        self._going = asyncio.Event()  # cleared while the clients pause
        self._going.set()

    async def run(self) -> dict[str, object]:
        await self.cloud.start()
        http, grpc = self.cloud.ready["http"], self.cloud.ready["grpc"]
        self.cloud.ports = {
            "AEIC_CLOUD_PORT": http.rpartition(":")[2],
            "AEIC_CLOUD_GRPC_PORT": grpc.rpartition(":")[2],
        }
        async with Proxy(grpc) as self.proxy, contextlib.AsyncExitStack() as stack:
            if self.requests:
                camera = stack.enter_context(http_camera())
                self.edge.environment["AEIC_EDGE_CAMERA_URL"] = f"{camera.url}/snap.jpg"
            self.edge.environment["AEIC_EDGE_CLOUD_ADDRESS"] = self.proxy.address
            await self.edge.start()
            self.edge.ports = {"AEIC_EDGE_PORT": self.edge.ready["http"].rpartition(":")[2]}
            begin = time.monotonic()
            over = asyncio.Event()
            trouble = asyncio.create_task(self._trouble(over) if self.chaos else asyncio.sleep(0))
            pauses = asyncio.create_task(self._pauses() if self.requests else asyncio.sleep(0))
            await asyncio.gather(*(self._client() for _ in range(CLIENTS)), self._ask(http))
            over.set()
            await trouble
            await pauses
            await self._ended(http)
            await self._delivered()
            seconds = time.monotonic() - begin
            up, down = self.proxy.up, self.proxy.down
            self.edge.measure()
            lost, wrong, extra = await self._compare(http)
            quarantined = await self._quarantined(http)
            code = await self.edge.stop()
        self.cloud.measure()
        await self.cloud.stop()
        count = len(self.acknowledged)
        payload = sum(len(self.expected[n]) for n in self.acknowledged.values())
        return {
            "frames": count,
            "lost": lost,
            "wrong": wrong,
            "duplicated": extra,
            "quarantined": quarantined,
            "requests": len(self.asked),
            "outcomes": dict(self.outcomes),
            "kinds": dict(self.kinds),
            "unanswered": len(self.asked) - self.outcomes.total(),
            "kinds_never_answered": len(KINDS - set(self.kinds)) if self.requests else 0,
            "edge_exit": code,
            "edge_starts": self.edge.starts,
            "cloud_starts": self.cloud.starts,
            "troubles": dict(self.events),
            "answers": dict(self.answers),
            "originals_at_kills": self.originals_at_kills,
            "frames_per_second": round(count / seconds, 1),
            "wire_up_bytes_over_payload_per_frame": round((up - payload) / count, 1),
            "wire_down_bytes_per_frame": round(down / count, 1),
            "resident_mb": round(self.edge.peak_mb),
            "seconds": round(seconds, 1),
        }

    async def _client(self) -> None:
        async with httpx.AsyncClient(timeout=15) as client:
            while self._next < self.frames:
                if not self._going.is_set():
                    await self._going.wait()
                    continue
                left = self.frames - self._next
                first, count = self._next, 1 if self._next // BURST % 2 else min(BURST, left)
                self._next += count
                wait = "spooled" if count == 1 else "received"
                await asyncio.gather(*(self._post(client, (first + n) % PICTURES, wait) for n in range(count)))

    async def _pauses(self) -> None:
        """Lets the clients pause after every PAUSE_FRAMES frames, or a third of all if that is fewer."""
        step = max(1, min(PAUSE_FRAMES, self.frames // 3))
        for due in range(step, self.frames, step):
            while len(self.acknowledged) < due:
                await asyncio.sleep(0.2)
            self._going.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE_SECONDS):
                    await self._delivered()
                    await asyncio.sleep(2)
            self._going.set()

    async def _post(self, client: httpx.AsyncClient, number: int, wait: str) -> None:
        """A picture, until it is acknowledged."""
        ident = new_id()
        while True:
            try:
                response = await client.post(
                    self.edge.ready["http"] + "/v1/frames",
                    params={"wait": wait},
                    content=self.pictures[number],
                    headers={"Idempotency-Key": str(ident)},
                )
            except httpx.HTTPError:
                self.answers["no answer"] += 1
                await asyncio.sleep(0.2)
                continue
            self.answers[str(response.status_code)] += 1
            if response.status_code == 202:
                self.answers[response.json()["state"]] += 1
                self.acknowledged[ident] = number
                return
            if response.status_code not in (429, 503, 507):
                raise RuntimeError(f"unexpected answer {response.status_code}: {response.text}")
            await asyncio.sleep(0.1)

    async def _ask(self, cloud: str) -> None:
        """Requests of all kinds about random frames; where the cloud does not have the frame yet, about another one."""
        bodies: list[dict[str, object]] = [
            {"kind": "better"},
            {"kind": "region", "region": {"x": 8, "y": 8, "width": 40, "height": 32}},
            {"kind": "region", "region": {"x": 0, "y": 0, "width": 16, "height": 16}, "deadline_seconds": 3},
            {"kind": "original"},
            {"kind": "original", "region": {"x": 4, "y": 4, "width": 32, "height": 40}},
            {"kind": "now"},
        ]
        rng = random.Random(1)
        async with httpx.AsyncClient(timeout=15, base_url=cloud) as client:
            while len(self.asked) < self.requests:
                await asyncio.sleep(0.02)
                if len(self.asked) * self.frames >= len(self.acknowledged) * self.requests:
                    continue
                frame = rng.choice(list(self.acknowledged))
                self.asked_about.add(str(frame))
                body = {"max_bytes": 4000, "deadline_seconds": 150, **bodies[len(self.asked) % len(bodies)]}
                try:
                    answer = await client.post(f"/v1/frames/{frame}/requests", json=body)
                except httpx.HTTPError:
                    continue  # it may have been stored: _ended() looks
                if answer.status_code == 202:
                    self.asked[answer.json()["id"]] = answer.headers["location"]
                elif answer.status_code == 429:  # many are open while the box is cut off
                    await asyncio.sleep(0.5)
                elif answer.status_code not in (404, 410, 503):
                    raise RuntimeError(f"unexpected answer {answer.status_code}: {answer.text}")

    async def _ended(self, cloud: str) -> None:
        """Waits until every request has ended, and counts how. Also those whose answer to the client was lost."""
        async with httpx.AsyncClient(timeout=30, base_url=cloud) as client:
            for frame in sorted(self.asked_about):
                listed = await client.get(f"/v1/frames/{frame}/requests")
                for one in listed.json().get("requests", []):  # it may never have arrived
                    self.asked.setdefault(one["id"], f"/v1/frames/{frame}/requests/{one['id']}")
            deadline = time.monotonic() + 240
            for path in self.asked.values():
                state: dict[str, str] = (await client.get(path)).json()
                while state["state"] == "open" and time.monotonic() < deadline:
                    state = (await client.get(path, params={"wait": 10})).json()
                if state["state"] == "answered":
                    there = (await client.get(f"/v1/frames/{state['answer']}")).json()
                    assert there["parent"] == path.split("/")[3] and there["kind"] == state["kind"], there
                    assert (there["media_type"] is None) == (there["kind"] != "original"), there
                    if there["media_type"] is not None:
                        file = await client.get(f"/v1/frames/{state['answer']}/file")
                        assert hashlib.sha256(file.content).hexdigest() == there["digest"], there
                        assert picture_size(file.content)[0] > 0
                    self.kinds[there["kind"]] += 1
                if state["state"] != "open":
                    self.outcomes[state["reason"] or "answered"] += 1

    async def _trouble(self, over: asyncio.Event) -> None:
        kinds = [
            self._kill_edge, self._kill_recovery, self._kill_cloud, self._cut, self._stall,
            self._fill_disk, self._break_disk, self._jump_clock,
        ]  # fmt: skip
        while not over.is_set():
            await asyncio.sleep(self.rng.uniform(0.2, 2.0))
            kind = self.rng.choice(kinds)
            self.events[kind.__name__.strip("_")] += 1
            await kind()  # leaves everything well again when it ends

    async def _kill_edge(self) -> None:
        await self.edge.kill()
        with contextlib.closing(sqlite3.connect(self._spool)) as connection:
            self.originals_at_kills += connection.execute("SELECT COUNT(*) FROM originals").fetchone()[0]
        await self.edge.start()

    async def _kill_recovery(self) -> None:
        """Damages what the spool can do without, its first page, and kills the edge while it recovers the rest."""
        await self.edge.kill()
        with contextlib.closing(sqlite3.connect(self._spool)) as connection:  # else the page may also be in the log
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with self._spool.open("r+b") as file:
            file.write(self.rng.randbytes(100))
        for _ in range(self.rng.randint(1, 3)):
            self.machines[0].set(kill_step=self.rng.randint(1, 80))
            await self.edge.spawn()
            if await self.edge.answers():  # its recovery took fewer steps
                await self.edge.kill()
                break
            self.events["kills in a recovery"] += 1
        self.machines[0].set(kill_step=0)
        await self.edge.start()

    async def _break_disk(self) -> None:
        """For a while all I/O of the spool fails, or all writing."""
        mode = self.rng.choice(["eio", "ro"])
        self.machines[0].set(mode=mode)
        self.events[mode] += 1
        await asyncio.sleep(self.rng.uniform(0.05, 2))
        self.machines[0].set(mode="")

    async def _jump_clock(self) -> None:
        day = 86_400
        self.rng.choice(self.machines).set(
            clock_offset=self.rng.choice([0, 2.5, -3600, 90 * day, -90 * day, 400 * day])
        )

    async def _kill_cloud(self) -> None:
        await self.cloud.kill()
        await asyncio.sleep(self.rng.uniform(0, 1))
        await self.cloud.start()

    async def _cut(self) -> None:
        for _ in range(self.rng.randint(1, 5)):
            self.proxy.cut()
            await asyncio.sleep(self.rng.uniform(0, 0.3))

    async def _stall(self) -> None:
        self.proxy.stalled = True
        await asyncio.sleep(self.rng.uniform(0.1, 4))
        if self.rng.random() < 0.5:
            self.proxy.cut()
        self.proxy.stalled = False

    async def _fill_disk(self) -> None:
        wal = self._spool.with_name("spool.sqlite3-wal")
        with contextlib.suppress(OSError):
            size = max(wal.stat().st_size, self._spool.stat().st_size)
            limit = size + self.rng.randrange(20_000)
            resource.prlimit(self.edge.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            await asyncio.sleep(self.rng.uniform(0.1, 2))
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(self.edge.process.pid, resource.RLIMIT_FSIZE, unlimited)

    async def _delivered(self) -> None:
        async with httpx.AsyncClient(timeout=15) as client:
            deadline = time.monotonic() + 120
            status: object = None
            while time.monotonic() < deadline:
                with contextlib.suppress(httpx.HTTPError):  # it was killed just now
                    status = found = (await client.get(self.edge.ready["http"] + "/v1/status")).json()
                    if found["spool"]["frames"] + found["received"]["frames"] == 0:
                        return
                await asyncio.sleep(0.1)
            raise RuntimeError(f"not delivered in two minutes: {status}")

    async def _quarantined(self, cloud: str) -> int:
        async with httpx.AsyncClient(timeout=30, base_url=cloud) as client:
            return len((await client.get("/v1/frames", params={"state": "failed"})).json()["frames"])

    async def _compare(self, cloud: str) -> tuple[int, int, int]:
        """How many acknowledged frames are missing in the cloud, differ there, or stand there without being ours."""
        listed: Counter[str] = Counter()
        async with httpx.AsyncClient(timeout=30, base_url=cloud) as client:
            cursor: str | None = ""
            while cursor is not None:
                query = {"limit": "200", **({"cursor": cursor} if cursor else {})}
                page = (await client.get("/v1/frames", params=query)).json()
                listed.update(frame["id"] for frame in page["frames"] if frame["height"] != CAMERA_HEIGHT)
                cursor = page["next_cursor"]
            room = asyncio.Semaphore(8)

            async def same(ident: uuid.UUID, number: int) -> bool:
                async with room:
                    response = await client.get(f"/v1/frames/{ident}/bitstream")
                return response.content == self.expected[number]

            here = {i: n for i, n in self.acknowledged.items() if str(i) in listed}
            right = await asyncio.gather(*(same(ident, number) for ident, number in here.items()))
        ours = {str(ident) for ident in self.acknowledged} | set(self.asked)
        extra = sum(count - (ident in ours) for ident, count in listed.items())
        return len(self.acknowledged) - len(here), right.count(False), extra


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=0, help="requests for more of the pictures")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calm", action="store_true", help="break nothing; measures speed and wire bytes")
    parser.add_argument("--keep", type=Path, help="folder for stores and logs, kept; by default a temporary one")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        soak = Soak(folder, options.frames, options.seed, not options.calm, options.requests)
        result = asyncio.run(soak.run())
    print(json.dumps(result))
    wrong = "lost", "wrong", "duplicated", "quarantined", "edge_exit", "unanswered", "kinds_never_answered"
    return int(any(result[name] for name in wrong))


if __name__ == "__main__":
    sys.exit(main())
