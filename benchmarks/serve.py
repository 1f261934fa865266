"""What serving costs: the cloud over loopback HTTP beside the bare decoder, in one process on the same frames.

    PYTHONPATH=. python benchmarks/serve.py [--bundle PATH] [--device auto] [--pictures 96] [--clients 64] [--json FILE]

Saturation: `clients` callers keep POST /v1/decode busy with mixed sizes; the bare decoder gets the same frames as one
list. Both make pixels and PNG files. Low load: one caller at a time, bare and served taking turns. Rounds alternate,
and the median of their ratios counts, since a shared machine is never quiet. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from cloud_decoder import pictures
from cloud_decoder.decoder import Decoder
from cloud_decoder.service import Cloud
from cloud_decoder.settings import Settings

SIZES = ((768, 512), (512, 768), (640, 480), (512, 512))


def make_frames(bundle: Bundle, count: int) -> list[bytes]:
    """Frames of mixed sizes with different contents; smooth noise through the bundle's own analysis."""
    codec, chance = LatentCodec(bundle), np.random.default_rng(0)
    analysis = bundle.session("analysis")
    frames = []
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        frame = Frame(width, height, bundle.default_rate, bundle.fingerprint, b"")
        tall, wide = frame.padded_size
        coarse = chance.uniform(-0.8, 0.8, (1, 3, tall // 64, wide // 64)).astype(np.float32)
        (y,) = analysis.run(None, {"image": coarse.repeat(64, 2).repeat(64, 3)})
        frames.append(codec.encode(y[0], bundle.default_rate, width, height))
    return frames


def run_bare(decoder: Decoder, frames: list[bytes]) -> float:
    """Seconds for all frames through the decoder and into PNG files, as well as it can: PNGs beside the next batch."""
    started = time.perf_counter()
    size = 4 * decoder.max_batch
    with ThreadPoolExecutor(2) as threads:
        order = sorted(frames, key=lambda data: Frame.parse(data).latent_size)
        written = []
        for start in range(0, len(order), size):
            for picture in decoder.decode(order[start : start + size]):
                written.append(threads.submit(pictures.encode, picture, pictures.MASTER))
        for one in written:
            one.result()
    return time.perf_counter() - started


async def run_served(address: str, frames: list[bytes], clients: int) -> float:
    """Seconds for all frames through HTTP with ``clients`` callers, each on a connection of its own.

    The client is this thin because it shares the cores with the service: a full HTTP library costs more than serving.
    """
    host, port = address.removeprefix("http://").split(":")
    waiting = list(frames)
    started = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
        while waiting:
            data = waiting.pop()
            writer.write(f"POST /v1/decode HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n\r\n".encode())
            writer.write(data)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            body = await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
            if " 200 " not in head.split("\r\n")[0]:
                raise RuntimeError(body.decode())
        writer.close()

    await asyncio.gather(*(client() for _ in range(min(clients, len(frames)))))
    return time.perf_counter() - started


async def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Everything, as the last line tells it."""
    decoder = Decoder.from_bundle(arguments.bundle, arguments.device, max_batch=arguments.max_batch)
    frames = make_frames(decoder.bundle, arguments.pictures)
    pixels = sum(Frame.parse(data).width * Frame.parse(data).height for data in frames)
    with tempfile.TemporaryDirectory() as folder:
        cloud = Cloud(Settings(port=0, grpc_port=0, data_dir=Path(folder), max_wait_seconds=600), decoder)
        await cloud.start()
        await asyncio.to_thread(run_bare, decoder, frames[: len(SIZES)])
        await run_served(cloud.http, frames[: len(SIZES)], 1)
        rounds, cpu = [], []
        for _ in range(arguments.rounds):
            spent = time.process_time()
            bare = await asyncio.to_thread(run_bare, decoder, frames)
            half = time.process_time()
            served = await run_served(cloud.http, frames, arguments.clients)
            rounds.append((bare, served))
            cpu.append((half - spent, time.process_time() - half))
            print(f"bare {len(frames) / bare:6.2f} pictures/s   served {len(frames) / served:6.2f} pictures/s")
        value = cloud.metrics.registry.get_sample_value
        pieces, batches = value("aeic_cloud_batch_pieces_sum"), value("aeic_cloud_batch_pieces_count")
        lone = []
        for data in frames[: arguments.lone]:
            started = time.perf_counter()
            (picture,) = await asyncio.to_thread(decoder.decode, [data])
            await asyncio.to_thread(pictures.encode, picture, pictures.MASTER)
            middle = time.perf_counter()
            await run_served(cloud.http, [data], 1)
            lone.append((middle - started, time.perf_counter() - middle))
        await cloud.stop()
    assert pieces is not None and batches
    alone = len(SIZES) + arguments.lone  # batches of one that low load made are not saturation's
    return {
        "benchmark": "serve",
        "bundle": decoder.bundle.name,
        "device": decoder.device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 2),
        "pictures": len(frames),
        "clients": arguments.clients,
        "bare_pictures_per_second": round(len(frames) / statistics.median(bare for bare, _ in rounds), 3),
        "served_pictures_per_second": round(len(frames) / statistics.median(served for _, served in rounds), 3),
        "served_megapixels_per_second": round(pixels / 1e6 / statistics.median(served for _, served in rounds), 3),
        "served_over_bare": round(statistics.median(bare / served for bare, served in rounds), 3),
        "cpu_seconds_bare_over_served": round(statistics.median(bare / served for bare, served in cpu), 3),
        "mean_batch": round((pieces - len(SIZES)) / (batches - len(SIZES)), 2),
        "batch_cap": decoder.max_batch,
        "lone_overhead_ms": round(1000 * statistics.median(served - bare for bare, served in lone), 2),
        "lone_bare_ms": round(1000 * statistics.median(bare for bare, _ in lone), 2),
        "low_load_pictures": alone,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Served throughput beside the bare decoder's.")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-batch", type=int, default=0, help="0: what suits the device")
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lone", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the result there too")
    arguments = parser.parse_args()
    result = asyncio.run(measure(arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
