"""Measures the whole edge path from the POST to the acknowledgement: speed, memory, size on disk, time to ready.

    python benchmarks/edge/whole_path.py [--frames 200] [--wait received] [--width 768 --height 512] [--picture FILE]

The service runs in a process of its own. It sends frames through a counting proxy to a minimal cloud in this process.
Clients, proxy and cloud share the cores with the service. The program prints a table and, as the last line, one JSON
object. `resident_mb` is the peak of the process, including its start. `cpu_ms_per_frame` is the service's CPU time on
all cores, which other work on the machine changes little; `clients_cpu_ms_per_frame` is that of clients, proxy and
cloud.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import io
import json
import os
import re
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.edge.fakes import FakeCloud, Proxy, serving  # noqa: E402


def synthetic(width: int, height: int) -> bytes:
    """A JPEG with edges, gradients and some texture; the same every time."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    rng = np.random.default_rng(0)
    waves = np.stack([np.sin(x / (7 + 9 * c) + y / (23 - 5 * c)) for c in range(3)], -1)
    picture = 128 + 60 * waves + 40 * (((x // 61 + y // 47) % 2)[..., None] - 0.5) + rng.normal(0, 4, waves.shape)
    out = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=92)
    return out.getvalue()


def _peak_mb(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    data = options.picture.read_bytes() if options.picture else synthetic(options.width, options.height)
    cloud = FakeCloud()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AEIC_EDGE_")}
    if options.bundle:
        clean["AEIC_BUNDLE"] = str(options.bundle)
    async with serving(cloud) as address, Proxy(address) as proxy:
        begin = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edge_encoder", "--port", "0", "--data-dir", str(folder / "spool"),
            "--cloud-address", proxy.address,
            cwd=ROOT, env=clean, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise SystemExit("the edge did not start: run `aeic edge` to see why")
        url = json.loads(line)["http"]
        ready = time.perf_counter() - begin
        answers: list[dict[str, Any]] = []
        try:
            async with httpx.AsyncClient(base_url=url, timeout=300) as client:
                warm = (await client.post("/v1/frames?wait=delivered&timeout=60", content=data)).json()
                up, down = proxy.up, proxy.down
                begin, cpu, own = time.perf_counter(), _cpu_seconds(process.pid), time.process_time()
                left = iter(range(options.frames))

                async def post() -> None:
                    for _ in left:
                        while True:
                            response = await client.post("/v1/frames", params={"wait": options.wait}, content=data)
                            if response.status_code != 429:
                                break
                            await asyncio.sleep(0.05)
                        answers.append(response.raise_for_status().json())

                await asyncio.gather(*(post() for _ in range(options.clients)))
                posted = time.perf_counter() - begin
                wanted = {uuid.UUID(a["id"]) for a in answers}
                while not wanted <= set(cloud.frames) and time.perf_counter() - begin < 600:
                    await asyncio.sleep(0.01)
                total, cpu = time.perf_counter() - begin, _cpu_seconds(process.pid) - cpu
                own = time.process_time() - own
                up, down = proxy.up - up, proxy.down - down
                seconds: list[float] = []
                for _ in range(options.alone):
                    start = time.perf_counter()
                    await client.post("/v1/frames?wait=delivered&timeout=60", content=data)
                    seconds.append(time.perf_counter() - start)
            peak = _peak_mb(process.pid)
        finally:
            process.terminate()
            await process.wait()
    encoded = [a for a in answers if "timings_ms" in a]  # those that waited for their encode
    stages = {
        stage: round(statistics.median(a["timings_ms"][stage] for a in encoded), 1)
        for stage in ("read", "analyse", "entropy")
        if encoded
    }
    size = warm["bytes"]
    return {
        "width": warm["width"],
        "height": warm["height"],
        "bytes": size,
        "wait": options.wait,
        "frames": len(answers),
        "lost": len(wanted - set(cloud.frames)),
        "duplicated": cloud.received - len(cloud.frames),
        "frames_per_second": round(len(answers) / total, 2),
        "posted_per_second": round(len(answers) / posted, 2),
        "cpu_ms_per_frame": round(1000 * cpu / len(answers), 1),
        "clients_cpu_ms_per_frame": round(1000 * own / len(answers), 1),
        "alone_post_to_acknowledged_ms_median": round(1000 * statistics.median(seconds), 1),
        "encode_ms_median": round(statistics.median(a["encode_ms"] for a in encoded), 1) if encoded else None,
        "stages_ms_median": stages,
        "wire_up_bytes_over_payload_per_frame": round(up / len(answers) - size, 1),
        "wire_down_bytes_per_frame": round(down / len(answers), 1),
        "resident_mb": round(peak),
        "ready_seconds": round(ready, 2),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 1),
        "onnxruntime": importlib.metadata.version("onnxruntime"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="model bundle; by default the one that ships")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--wait", choices=("spooled", "received"), default="spooled", help="what each post waits for")
    parser.add_argument("--clients", type=int, default=4, help="concurrent posts")
    parser.add_argument("--alone", type=int, default=10, help="then so many one after the other, each waited for")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--picture", type=Path, help="a photograph instead of the synthetic picture")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        result = asyncio.run(measure(parser.parse_args(), folder))
    for name, value in result.items():
        print(f"{name:40} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
