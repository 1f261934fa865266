"""Compares decoding of a full-size profile by our cloud path and by plain PyTorch float32, in one run.

    aeic bench decode --profile se [--size 768x512] [--threads 2] [--rounds 3] [--bundle DIR]

The plain path runs g_s, UNet and picture decoder in eager PyTorch float32, with LoRA merged and nothing folded, from
given latents. Our path goes from the bytes of a frame to pixels and includes entropy decoding. Each path has a process
of its own, so that peak memory can be measured, and they take turns. Without --bundle the weights are generated from
the names of the tensors, which takes minutes and 2 GB in the temporary folder. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from aeic.pixels import from_tensor
from aeic.profiles import profile
from aeic_nets.network import AEIC
from aeic_nets.official.golden_weights import golden_picture
from aeic_train.export.from_official import build
from benchmarks.golden_bundle import golden_codec, golden_files, write_golden_bundle
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from edge_encoder.encoding.encoder import Encoder

GOAL, MOST_GIGABYTES = 1.3, 4.5

Picture = NDArray[np.uint8]
Make = Callable[[Path, str], Callable[[bytes], Picture]]


def plain(folder: Path, name: str) -> Callable[[bytes], Picture]:
    """The network in float32, built from the official tensors. The latents are decoded once, before the timing."""
    model: AEIC = build(golden_files(profile(name)), profile(name), folded=False)
    codec = LatentCodec(Bundle.load(folder, verify=False), threads=1)
    known: dict[bytes, torch.Tensor] = {}

    def run(data: bytes) -> Picture:
        if data not in known:
            known[data] = torch.from_numpy(codec.decode(data).y_hat[None])
        with torch.inference_mode():
            return from_tensor(model.generate(known[data])[0].numpy())

    return run


def ours(folder: Path, name: str) -> Callable[[bytes], Picture]:
    decoder = Decoder.from_bundle(folder, "cpu", DecoderSettings(threads=torch.get_num_threads()))
    return lambda data: decoder.decode([data])[0]


MAKERS: dict[str, Make] = {"plain": plain, "ours": ours}


def worker(kind: str, folder: Path, name: str, threads: int, pipe: Connection) -> None:
    """Answer each frame with its picture, the seconds it took, and the peak memory of this process in bytes."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    run = MAKERS[kind](folder, name)
    pipe.send("ready")
    while data := pipe.recv():
        begin = time.perf_counter()
        picture = run(data)
        seconds = time.perf_counter() - begin
        pipe.send((picture, seconds, _peak_bytes()))


def _peak_bytes() -> int:
    """This process's peak memory. ``ru_maxrss`` would include that of the parent, which may have made the bundle."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found.group(1))


def measure(folder: Path, options: argparse.Namespace, frame: bytes) -> dict[str, Any]:
    """Medians after one warm-up round, and the difference between the pictures of both paths."""
    times: dict[str, list[float]] = {kind: [] for kind in MAKERS}
    pictures: dict[str, Picture] = {}
    peaks: dict[str, float] = {}
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pipes = {}
        for kind in MAKERS:
            near, far = context.Pipe()
            arguments = (kind, folder, options.profile, options.threads, far)
            process = context.Process(target=worker, args=arguments, daemon=True)
            process.start()
            far.close()
            stack.callback(process.join)
            stack.callback(near.send, None)
            pipes[kind] = near
        for pipe in pipes.values():
            pipe.recv()
        for number in range(options.rounds + 1):
            for kind, pipe in pipes.items():
                pipe.send(frame)
                pictures[kind], seconds, peaks[kind] = pipe.recv()
                if number:
                    times[kind].append(seconds)
    error = np.square(pictures["plain"].astype(float) - pictures["ours"]).mean()
    found: dict[str, Any] = {
        kind: {"s": round(statistics.median(times[kind]), 3), "peak_gb": round(peaks[kind] / 1e9, 2)} for kind in MAKERS
    }
    return found | {
        "times_faster": round(found["plain"]["s"] / found["ours"]["s"], 2),
        "psnr_between_db": round(float(10 * np.log10(255**2 / max(error, 1e-9))), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="aeic bench decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=("se", "me"), default="se")
    parser.add_argument("--size", default="768x512", help="WIDTHxHEIGHT")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bundle", type=Path, help="one that an earlier run or `make test-full` left, golden weights")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.bundle or Path(scratch) / "bundle"
        if not (folder / "bundle.json").exists():
            write_golden_bundle(golden_codec(options.profile), folder, decoder=True)
        rgb = from_tensor(golden_picture(height, width, 1.0)[0].numpy())
        frame = Encoder.from_bundle(folder, options.threads).encode(rgb).data
        found = measure(folder, options, frame)
    print(f"{'':8} {'seconds':>8} {'peak':>8}")
    for kind in MAKERS:
        print(f"{kind:8} {found[kind]['s']:8.2f} {found[kind]['peak_gb']:5.2f} GB")
    report = {"bench": "decode", "profile": options.profile, "size": options.size, "threads": options.threads} | found
    report["ok"] = found["times_faster"] >= GOAL and found["ours"]["peak_gb"] < MOST_GIGABYTES
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
