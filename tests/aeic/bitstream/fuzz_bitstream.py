"""Damaged frames by the thousand: ``python -m tests.aeic.bitstream.fuzz_bitstream --seconds 60`` (or ``--streams N``).

Takes good frames of the tiny bundle, cuts, flips, splices and invents, and decodes the result. Whatever comes, the
decoder answers with latents or a ``BitstreamError``, in bounded time and memory; wrong latents may pass only as often
as 24 bits of check allow, once in 16.7 million. Every 20th stream goes through both coders, which must agree.

Prints a table and, as the last line, one JSON object; exits 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil

from aeic import rans
from aeic.bitstream import HEADER_BYTES, Frame
from aeic.bundle import Bundle
from aeic.colour_statistics import ColourStatistics
from aeic.errors import BitstreamError
from aeic.latent_codec import LatentCodec
from tests.support.models.tiny_bundle import write_tiny_bundle

SLOWEST_SECONDS = 20.0
MOST_MEMORY_MIB = 1500
SIDES = [(16, 16), (64, 64), (100, 40), (128, 128), (200, 130)]
Damage = Callable[[random.Random, bytes], bytes]


def peak_mib() -> float:
    """The peak of this process's memory. ``ru_maxrss`` would count the process that started it as well."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data))]


def cut_payload(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(HEADER_BYTES, len(data))]


def flip_bits(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5, 20))):
        changed[chance.randrange(HEADER_BYTES, len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def set_bytes(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    start = chance.randrange(HEADER_BYTES, len(data))
    changed[start : start + chance.randrange(1, 9)] = chance.randbytes(chance.randrange(9))
    return bytes(changed)


def noise(chance: random.Random, data: bytes) -> bytes:
    return data[:HEADER_BYTES] + chance.randbytes(chance.randrange(1, 60))


def splice(chance: random.Random, data: bytes) -> bytes:
    start = chance.randrange(HEADER_BYTES, len(data))
    return data[:start] + data[chance.randrange(HEADER_BYTES, len(data)) :]


def other_header(chance: random.Random, data: bytes) -> bytes:
    """Another rate, size or fingerprint, up to 4096 more a side: the one damage that may cost much time."""
    changed = bytearray(data)
    bit = chance.randrange(8 * HEADER_BYTES)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def all_noise(chance: random.Random, data: bytes) -> bytes:
    return chance.randbytes(chance.randrange(100))


DAMAGES: list[tuple[Damage, int]] = [
    (cut, 10),
    (cut_payload, 20),
    (flip_bits, 40),
    (set_bytes, 20),
    (noise, 15),
    (splice, 10),
    (other_header, 4),
    (all_noise, 10),
]


def good_frames(codec: LatentCodec) -> list[bytes]:
    rng = np.random.default_rng(0)
    frames = []
    for width, height in SIDES:
        size = Frame(width, height, 0, "000000", b"").latent_size
        y = (rng.normal(size=(codec.bundle.channels, *size)) * 8).astype(np.float32)
        colour = ColourStatistics.of(rng.integers(0, 256, (height, width, 3), np.uint8))
        for rate in codec.bundle.rates:
            frames += [codec.encode(y, rate.number, width, height, either) for either in (None, colour)]
    return frames


def outcome(codec: LatentCodec, data: bytes) -> str:
    """The digest of the latents, or the name of the error."""
    try:
        return codec.decode(data).digest
    except BitstreamError as error:
        return type(error).__name__


def run(seconds: float, streams: int | None, seed: int = 0, stopped: Sequence[int] = ()) -> dict[str, object]:
    """Fuzz until ``seconds`` or ``streams`` are spent, or ``stopped`` is not empty; the result as the JSON has it."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        codec = LatentCodec(Bundle.load(write_tiny_bundle(folder)), threads=1)
        frames = good_frames(codec)
        damages, weights = zip(*DAMAGES, strict=True)
        outcomes: Counter[str] = Counter()
        crashes, accepted, disagreements, slowest, done = 0, 0, 0, 0.0, 0
        preferred, start = rans.ACCELERATED, time.monotonic()
        before = psutil.Process().memory_info().rss
        while time.monotonic() - start < seconds and (streams is None or done < streams) and not stopped:
            data = chance.choice(frames)
            bad = chance.choices(damages, weights)[0](chance, data)
            if bad in frames:
                continue
            done += 1
            began = time.process_time()  # not the clock: a busy machine is no hang
            try:
                answer = outcome(codec, bad)
                if preferred and done % 20 == 0:
                    rans.ACCELERATED = False
                    disagreements += outcome(codec, bad) != answer
            except Exception as error:  # anything but a BitstreamError is what we are looking for
                crashes += 1
                answer = f"crash: {type(error).__name__}"
                print(f"{answer}: {error}: {bad.hex()}", file=sys.stderr)
            rans.ACCELERATED = preferred
            slowest = max(slowest, time.process_time() - began)
            if len(answer) == 64:
                accepted, answer = accepted + 1, "accepted"
                print(f"accepted: {bad.hex()}", file=sys.stderr)
            outcomes[answer] += 1
    after = psutil.Process().memory_info().rss
    memory = peak_mib()
    allowed = 1 + 4 * done // (1 << 24)
    return {
        "bench": "fuzz_bitstream",
        "streams": done,
        "seconds": round(time.monotonic() - start, 1),
        "seed": seed,
        "outcomes": dict(sorted(outcomes.items())),
        "crashes": crashes,
        "accepted_wrong": accepted,
        "disagreements": disagreements,
        "slowest_cpu_ms": round(1000 * slowest, 1),
        "memory_mib_before": round(before / 2**20),
        "memory_mib_after": round(after / 2**20),
        "peak_memory_mib": round(memory),
        "ok": not crashes
        and not disagreements
        and accepted <= allowed
        and slowest < SLOWEST_SECONDS
        and memory < MOST_MEMORY_MIB,
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="decode damaged frames")
    parser.add_argument("--seconds", type=float, default=None, help="how long (default 30, unlimited with --streams)")
    parser.add_argument("--streams", type=int, default=None, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    seconds = given.seconds or (float("inf") if given.streams else 30.0)
    stopped: list[int] = []  # Ctrl-C and SIGTERM end a long run with its result
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda number, _: stopped.append(number))
    result = run(seconds, given.streams, given.seed, stopped)
    for name, value in result.items():
        print(f"{name:18} {value}")
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
