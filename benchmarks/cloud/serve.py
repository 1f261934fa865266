"""Measures the cost of serving: the cloud over loopback HTTP, the bare decoder on the same frames, and other servers.

    aeic bench serve [--short] [--pictures 64] [--clients 64] [--rounds 3] [--max-batch 0] [--peers litserve,ray]

Saturation: `clients` callers keep POST /v1/decode busy with frames of mixed sizes. The bare decoder gets the same
frames as one list. These parts are measured on each side:

- bare: checks, entropy decoding, synthesis in this process, and PNG files in memory, written during the next synthesis.
- served: the same, plus HTTP, hashing, the queue, batches, and synthesis in a process of its own. The clients run on
  the same cores. Their time is part of the service's wall time, and is reported separately in CPU time.
- stored: the same, plus commits, the cache's files and events, for frames that arrive over gRPC as from an edge. This
  is measured once.

Low load: one caller at a time, bare and served in turn. LitServe and Ray Serve wrap the same decoder (extra `bench`).
Every service runs only while it is measured. Bare and served rounds alternate, and ratios are taken within a round,
because other work on the machine changes the speed from round to round. It changes CPU time less than wall time. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.errors import remedy
from aeic.latent_codec import LatentCodec
from benchmarks.cloud.served import Service, our_cloud, peer_service
from cloud_decoder.images import formats
from cloud_decoder.inference.decoder import Decoder, DecoderSettings

SIZES = ((768, 512), (512, 768), (640, 480), (512, 512))


def make_frames(bundle: Bundle, count: int, scale: float = 1.0) -> list[bytes]:
    """Frames of mixed sizes with different contents, made from smooth noise by the bundle's own analysis."""
    codec, chance = LatentCodec(bundle), np.random.default_rng(0)
    analysis = bundle.session("analysis")
    frames = []
    for number in range(count):
        width, height = (round(scale * side) for side in SIZES[number % len(SIZES)])
        frame = Frame(width, height, bundle.default_rate, bundle.fingerprint, b"")
        tall, wide = frame.padded_size
        coarse = chance.uniform(-0.8, 0.8, (1, 3, tall // 64, wide // 64)).astype(np.float32)
        (y,) = analysis.run(None, {"image": coarse.repeat(64, 2).repeat(64, 3)})
        frames.append(codec.encode(y[0], bundle.default_rate, width, height))
    return frames


def run_bare(decoder: Decoder, frames: list[bytes]) -> float:
    """Seconds to decode all frames and write PNG files, each batch's files during the next batch's synthesis."""
    started = time.perf_counter()
    size = 4 * decoder.max_batch
    with ThreadPoolExecutor(2) as threads:
        order = sorted(frames, key=lambda data: Frame.parse(data).latent_size)
        written = []
        for start in range(0, len(order), size):
            for picture in decoder.decode(order[start : start + size]):
                written.append(threads.submit(formats.encode, picture, formats.MASTER))
        for one in written:
            one.result()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Round:
    """The same frames, bare and served: seconds of wall time, and of CPU time on all cores."""

    bare: float
    served: float
    bare_cpu: float
    service_cpu: float
    clients_cpu: float


def saturate(
    name: str, service: Service, decoder: Decoder, frames: list[bytes], work: Coroutine[Any, Any, float]
) -> Round:
    """Run and print one round. ``work`` has the service make all pictures and returns the seconds."""
    begun, started = time.process_time(), service.cpu_seconds()
    bare = run_bare(decoder, frames)
    middle = time.process_time()
    served = asyncio.run(work)
    ended, finished = time.process_time(), service.cpu_seconds()
    one = Round(bare, served, middle - begun, finished - started, ended - middle)
    count = len(frames)
    print(
        f"{name:9} bare {count / bare:6.2f}/s, {1000 * one.bare_cpu / count:5.0f} ms of CPU each"
        f"   served {count / served:6.2f}/s, {1000 * one.service_cpu / count:5.0f} ms"
        f" and the clients {1000 * one.clients_cpu / count:3.0f} ms"
        f"   {bare / served:.3f} by wall time, {one.bare_cpu / one.service_cpu:.3f} in CPU time",
        flush=True,
    )
    return one


def low_load(service: Service, decoder: Decoder, frames: list[bytes]) -> list[tuple[float, float]]:
    """(bare, served): seconds of each frame alone, bare and served in turn."""
    times = []
    for data in frames:
        started = time.perf_counter()
        (picture,) = decoder.decode([data])
        formats.encode(picture, formats.MASTER)
        middle = time.perf_counter()
        asyncio.run(service.run([data], 1))
        times.append((middle - started, time.perf_counter() - middle))
    return times


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run all measurements; the object of the last line."""
    decoder = Decoder.from_bundle(arguments.bundle, arguments.device, DecoderSettings(max_batch=arguments.max_batch))
    path, cap = decoder.bundle.path.resolve(), decoder.max_batch
    frames = make_frames(decoder.bundle, arguments.pictures, arguments.scale)
    lone = frames[: arguments.lone]
    pixels = sum(Frame.parse(data).width * Frame.parse(data).height for data in frames)
    run_bare(decoder, frames[: len(SIZES)])
    rounds: list[Round] = []
    counts = {"pieces": 0.0, "batches": 0.0}
    with our_cloud(path, arguments.device, cap) as service:
        asyncio.run(service.run(frames[: len(SIZES)], 1))
        alone = low_load(service, decoder, lone)
        for _ in range(arguments.rounds):
            before = service.counted("batch_pieces_sum"), service.counted("batch_pieces_count")
            rounds.append(saturate("aeic", service, decoder, frames, service.run(frames, arguments.clients)))
            counts["pieces"] += service.counted("batch_pieces_sum") - before[0]
            counts["batches"] += service.counted("batch_pieces_count") - before[1]
        digest = decoder.bundle.digest
        stored = saturate("stored", service, decoder, frames, service.store(frames, digest))
    served, count = statistics.median(one.served for one in rounds), len(frames)
    result: dict[str, object] = {
        "benchmark": "serve",
        "bundle": decoder.bundle.name,
        "device": decoder.device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 2),
        "pictures": count,
        "scale": arguments.scale,
        "clients": arguments.clients,
        "bare_pictures_per_second": round(count / statistics.median(one.bare for one in rounds), 3),
        "served_pictures_per_second": round(count / served, 3),
        "served_megapixels_per_second": round(pixels / 1e6 / served, 3),
        "served_over_bare": round(statistics.median(one.bare / one.served for one in rounds), 3),
        "served_over_bare_rounds": [round(one.bare / one.served, 3) for one in rounds],
        "bare_cpu_ms": _cpu_ms([one.bare_cpu for one in rounds], count),
        "service_cpu_ms": _cpu_ms([one.service_cpu for one in rounds], count),
        "clients_cpu_ms": _cpu_ms([one.clients_cpu for one in rounds], count),
        "stored_over_bare": round(stored.bare / stored.served, 3),
        "stored_service_cpu_ms": _cpu_ms([stored.service_cpu], count),
        "mean_batch": round(counts["pieces"] / counts["batches"], 3),
        "batch_cap": cap,
        "lone_overhead_ms": round(1000 * statistics.median(served - bare for bare, served in alone), 2),
        "lone_bare_ms": round(1000 * statistics.median(bare for bare, _ in alone), 2),
    }
    for name in filter(None, arguments.peers.split(",")):
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: {remedy('bench')}")
            continue
        with peer_service(name, path, cap) as peer:
            asyncio.run(peer.run(frames[: len(SIZES)], 1))
            alone = low_load(peer, decoder, lone)
            repeats = range(max(1, arguments.rounds // 2))
            clients = arguments.clients
            rounds = [saturate(name, peer, decoder, frames, peer.run(frames, clients)) for _ in repeats]
        result[f"{name}_over_bare"] = round(statistics.median(one.bare / one.served for one in rounds), 3)
        result[f"{name}_service_cpu_ms"] = _cpu_ms([one.service_cpu for one in rounds], count)
        result[f"{name}_lone_overhead_ms"] = round(1000 * statistics.median(s - b for b, s in alone), 2)
    return result


def _cpu_ms(seconds: list[float], count: int) -> float:
    """Milliseconds of one picture in the median round."""
    return round(1000 * statistics.median(seconds) / count, 1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Served throughput beside the bare decoder's, LitServe's and Ray's.")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-batch", type=int, default=0, help="0: what suits the device")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--scale", type=float, default=1.0, help="of the pictures' sides")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="the peers get half")
    parser.add_argument("--lone", type=int, default=12)
    parser.add_argument("--peers", "--baselines", default="litserve,ray", help="which peers to run; empty for none")
    parser.add_argument("--json", type=Path, help="write the result there too")
    parser.add_argument("--short", action="store_true", help="one round of 32 pictures, six lone ones, no peers")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.rounds, arguments.lone, arguments.peers = 1, 6, ""
        arguments.pictures = min(arguments.pictures, 32)
    result = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
