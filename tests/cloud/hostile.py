"""A hostile client, as ``make test-hostile``: ``python -m tests.cloud.hostile --requests 10000 [--seed 0]``.

The cloud runs as a process of its own with two tenants; one has frames. The client has the other's token, a wrong one
or none. It sends what Schemathesis makes of the OpenAPI (what fits it and what does not), damaged bitstreams over HTTP
and over both gRPC services, paths that climb, the other tenant's ids, and headers and bodies that are no HTTP at all.

Whatever comes: no status over 499 (504 only where the client set the deadline itself), no gRPC status that means a
bug, nothing of the other tenant in any answer, memory and open files as before, and good frames are decoded afterwards.
Prints a table and, as the last line, one JSON object; exits 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psutil

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from tests.support.clients.hostile_client import HEADERS, SECRET, SHARES, Findings, HostileClient
from tests.support.cloud.cloud import IngestClient, cloud_process
from tests.support.frames import frame_maker
from tests.support.models.tiny_bundle import write_tiny_bundle

MOST_GROWTH_MIB = 64


def run(requests: int, seed: int = 0) -> dict[str, Any]:
    """All attacks; ``wrong`` of the result lists what must not have been."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle.load(write_tiny_bundle(Path(folder) / "bundle"))
        make_frame = frame_maker(bundle)
        good = [make_frame(number) for number in range(6)]
        others = {uuid4(): make_frame(100 + number, 96, 64) for number in range(5)}
        digests = [hashlib.sha256(data).hexdigest().encode() for data in others.values()]
        findings = Findings([SECRET.encode(), *digests, *others.values()])
        settings = {
            "AEIC_CLOUD_TOKENS": "acme:token-of-acme,other:token-of-other",
            "AEIC_CLOUD_BODY_TIMEOUT_SECONDS": "1",
            "AEIC_CLOUD_MAX_WAIT_SECONDS": "20",
            "AEIC_CLOUD_MAX_PIXELS": str(512 * 512),
            "AEIC_CLOUD_THREADS": "1",
        }
        started = time.monotonic()
        with cloud_process(bundle, Path(folder) / "data", **settings) as (running, addresses):
            log = ThreadPoolExecutor(1)
            words = log.submit(running.stderr.read)  # type: ignore[union-attr]  # it is a pipe; a full pipe would stop the service
            asyncio.run(_deliver(addresses["grpc"], bundle, others))
            attacker = HostileClient(addresses["http"], addresses["grpc"], good, list(others), findings, seed)
            watched = psutil.Process(running.pid)
            for attack in SHARES:  # once through everything, so that what is made once is there
                getattr(attacker, attack)(max(12, requests // 20))
            before, sent = _held(watched), sum(findings.answers.values())
            for attack, share in SHARES.items():
                getattr(attacker, attack)(round(share * requests) - max(12, requests // 20))
            if (missing := requests - sum(findings.answers.values())) > 0:
                attacker.bitstreams(missing)
            time.sleep(1.5)  # what waits for a body gives up
            after = _held(watched)
            with httpx.Client(base_url=addresses["http"], timeout=30, headers=HEADERS[0]) as client:
                for data in good:
                    answer = client.post("/v1/decode", content=data)
                    if answer.status_code != 200:
                        findings.wrong.append(f"afterwards a good frame is answered {answer.status_code}")
            running.terminate()
            if running.wait(30):
                findings.wrong.append(f"the service ended with status {running.returncode}")
            if "Traceback" in words.result():
                findings.wrong.append("a traceback in the log: " + words.result().split("Traceback")[1][-600:])
            log.shutdown()
    total = sum(findings.answers.values())
    growth = (after[0] - before[0]) / 2**20
    if growth > MOST_GROWTH_MIB:
        findings.wrong.append(f"{growth:.0f} MiB more after {total - sent} requests")
    if after[1] > before[1] + 10:
        findings.wrong.append(f"{after[1] - before[1]} more open files")
    return {
        "test": "hostile",
        "requests": total,
        "seconds": round(time.monotonic() - started, 1),
        "rss_mib_before": round(before[0] / 2**20, 1),
        "rss_mib_after": round(after[0] / 2**20, 1),
        "rss_growth_mib": round(growth, 1),
        "answers": dict(sorted(findings.answers.items())),
        "wrong": findings.wrong,
    }


async def _deliver(address: str, bundle: Bundle, frames: dict[UUID, bytes]) -> None:
    async with IngestClient(address) as edge:
        await edge.hello(bundle, source=SECRET, token="token-of-acme")
        for id, data in frames.items():
            await edge.send(data, id)
            assert (await edge.ack()).status == pb.ACK_STATUS_STORED


def _held(service: psutil.Process) -> tuple[int, int]:
    """Bytes of memory and open files of the service and its decoder."""
    family = [service, *service.children(recursive=True)]
    return sum(one.memory_info().rss for one in family), sum(one.num_fds() for one in family)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Hostile requests against a running cloud.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = run(arguments.requests, arguments.seed)
    for name, count in result["answers"].items():
        print(f"{count:7}  {name}")
    for wrong in result["wrong"][:20]:
        print("WRONG", wrong)
    print(json.dumps(result | {"wrong": len(result["wrong"])}))
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
