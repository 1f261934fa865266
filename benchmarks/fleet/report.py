"""Measures the throughput of a fleet's parts on this machine and compares it with the simulator's prediction.

    aeic bench fleet [--parts queue workers] [--fronts 1] [--rounds 4] [--tiny] [--json FILE]

Part ``queue``: processes claim and finish the jobs of a filled queue in batches, without decoding. Then cameras send
frames over gRPC to front ends that share a port and commit them to PostgreSQL in groups.

Part ``workers``: each round has three measurements.

1. The bare decoder, without queue and database, runs on one core and then on two cores at once. The ratio is the best
   that a second core can give; two hardware threads of one core give far less than twice the speed.
2. One worker on its own core decodes a backlog, then two workers do.
3. Frames arrive faster than two workers decode. The simulator gets the seconds per frame of one worker and the loss
   when two share the machine, and predicts the queue age and the time until everything is decoded.

The result is the median of the rounds' ratios. A round in which other processes used more than a twentieth of the
machine is reported but not counted, unless all rounds are like that (``undisturbed_rounds`` is then 0).

PostgreSQL is Debian's and runs in a temporary folder with durable settings. ``--json`` keeps the results of other parts
in the file. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
from pathlib import Path

from aeic.bundle import Bundle
from benchmarks.fleet.queue import measure_claims, measure_ingest
from benchmarks.fleet.workers import measure_workers
from benchmarks.others import Others
from tests.support.cloud.postgres import Postgres
from tests.support.models.tiny_bundle import write_tiny_bundle

PARTS = ("queue", "workers")


async def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Measure the requested parts; the object of the last line."""
    server = Postgres(durable=True).start()
    settings: dict[str, object] = {"device": "onnx", "cache_url": f"file://{folder}/pictures", "lease_seconds": 30}
    result: dict[str, object] = {"benchmark": "fleet", "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    try:
        tiny = Bundle.load(write_tiny_bundle(folder / "tiny"))
        if "queue" in arguments.parts:
            others = Others()
            result |= measure_claims(server, arguments.jobs, arguments.batches, arguments.claimers)
            front = settings | {"bundle": tiny.path, "database_url": server.fresh()}
            ingested = await measure_ingest(front, folder, arguments.fronts, arguments.ingest_frames, tiny)
            print(f"ingest, {arguments.fronts} front end(s): {ingested:8.0f} frames/s", flush=True)
            result |= {"ingested_frames_per_second": round(ingested), "fronts": arguments.fronts}
            result["queue_beside_others"] = round(others.share(), 3)
        if "workers" in arguments.parts:
            bundle = tiny if arguments.tiny else Bundle.load(arguments.bundle)
            how = {name: getattr(arguments, name) for name in ("rounds", "seconds", "load")}
            result |= await measure_workers(bundle, server, settings, folder, frames=arguments.decode_frames, **how)
        return result
    finally:
        server.stop()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--jobs", type=int, default=6000, help="for each size of batch")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--claimers", type=int, default=2, help="processes that claim at once")
    parser.add_argument("--fronts", type=int, default=1)
    parser.add_argument("--ingest-frames", type=int, default=12000)
    parser.add_argument("--bundle", type=Path, help="of the workers; empty takes the shipped one")
    parser.add_argument("--tiny", action="store_true", help="workers decode the tests' tiny bundle")
    parser.add_argument("--decode-frames", type=int, default=40, help="for each worker in each run")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=90.0, help="no further round that would not be over by then")
    parser.add_argument("--load", type=float, default=4.0, help="arrivals of the simulated run, in one worker's speeds")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(arguments, Path(folder)))
    if arguments.json:
        known = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
        arguments.json.write_text(json.dumps(known | result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
