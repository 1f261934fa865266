"""``aeic bench speed --sizes``: time and peak memory by size of the picture, and the cost per pixel beside the first.

A picture of each size is made of the given pictures, side by side and as large as they are. All sizes take turns in one
process, so that whatever else the machine does reaches all of them. The peak of the resident memory is that of one
process for each size and direction, which encodes or decodes that picture twice.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aeic_tools.extras import needs
from aeic_tools.files import UsageError
from aeic_tools.machine import processor

Size = tuple[int, int]
HEAD = (
    f"{'size':>11}{'bytes':>8}{'encode':>11}{'ns/pixel':>10}{'ratio':>7}{'peak':>8}"
    f"{'decode':>11}{'ns/pixel':>10}{'ratio':>7}{'peak':>8}"
)


@dataclass
class Row:
    """One size: what was measured."""

    size: Size
    picture: bytes
    frame: bytes
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"encode": [], "decode": []})
    peak_mb: dict[str, float] = field(default_factory=dict)

    def ns_per_pixel(self, direction: str) -> float:
        """By the median."""
        return 1e9 * statistics.median(self.seconds[direction]) / (self.size[0] * self.size[1])


def run(
    pictures: Sequence[Path], sizes: str, *, reps: int, bundle: Path | None, threads: int, table: bool = True
) -> int:
    """Print a table, unless ``table`` is False, and one JSON as the last line. ``UsageError`` for what is no size."""
    wanted = [parse_size(part) for part in sizes.split(",")]
    with needs("edge-cpu and cloud-cpu"):
        from cloud_decoder.inference.decoder import Decoder, DecoderSettings
        from edge_encoder.encoding.encoder import Encoder
    encoder = Encoder.from_bundle(bundle, threads=threads)
    decoder = Decoder.from_bundle(bundle, settings=DecoderSettings(threads=threads))
    decoder.warm_up()
    rows = []
    for size in wanted:
        picture = compose(pictures, size)
        rows.append(Row(size, picture, encoder.encode(picture).data))
    runtimes = f"encode {encoder.analysis.provider}, decode {decoder.runtime}"
    if table:
        bundle_name = f"{encoder.bundle.name} {encoder.bundle.fingerprint}"
        print(f"bundle {bundle_name}; {threads or os.cpu_count()} threads; {runtimes}")
        print(f"the median of {reps} rounds after one warm-up; ratio: per pixel, relative to the first size\n")
        print(HEAD, flush=True)
    for round_number in range(reps + 1):
        for row in rows:
            taken = {
                "encode": _seconds(partial(encoder.encode, row.picture)),
                "decode": _seconds(partial(decoder.decode, [row.frame])),
            }
            for direction, seconds in taken.items():
                if round_number:
                    row.seconds[direction].append(seconds)
    decoder.close()
    for row in rows:
        for direction, data in (("encode", row.picture), ("decode", row.frame)):
            row.peak_mb[direction] = _peak(direction, data, bundle, threads)
        if table:
            print(_line(row, rows[0]), flush=True)
    results = [_result(row, rows[0]) for row in rows]
    machine = {"cpu": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    settings = {"reps": reps, "threads": threads, "bundle": encoder.bundle.fingerprint, "runtimes": runtimes}
    largest = {f"{each}_ratio": max(result[f"{each}_ratio"] for result in results) for each in ("encode", "decode")}
    print(
        json.dumps({"bench": "speed_by_size", "machine": machine, "settings": settings, "results": results} | largest)
    )
    return 0


def parse_size(text: str) -> Size:
    """``1280x720`` as (width, height). ``UsageError`` for anything else."""
    match = re.fullmatch(r"\s*(\d{1,5})x(\d{1,5})\s*", text)
    if not match or not all(16 <= int(side) <= 16_384 for side in match.groups()):
        raise UsageError(
            f"{text.strip()!r} is not a size: give sizes such as 1280x720,1920x1080, each side from 16 to 16384"
        )
    return int(match[1]), int(match[2])


def compose(pictures: Sequence[Path], size: Size) -> bytes:
    """A PNG of that size, filled with the pictures, side by side and row by row."""
    width, height = size
    images = [np.asarray(Image.open(path).convert("RGB")) for path in pictures]
    canvas: NDArray[np.uint8] = np.empty((height, width, 3), np.uint8)
    top = number = 0
    while top < height:
        left, tallest = 0, max(image.shape[0] for image in images)
        while left < width:
            image = images[number % len(images)]
            image = np.tile(image, (-(-tallest // image.shape[0]), 1, 1))[:tallest]
            part = image[: height - top, : width - left]
            canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
            left += image.shape[1]
            number += 1
        top += tallest
    with tempfile.SpooledTemporaryFile() as file:
        Image.fromarray(canvas).save(file, "PNG", compress_level=1)
        file.seek(0)
        return file.read()


def _line(row: Row, first: Row) -> str:
    text = f"{row.size[0]}x{row.size[1]:<5}".rjust(11) + f"{len(row.frame):>8}"
    for direction in ("encode", "decode"):
        milliseconds = 1e3 * statistics.median(row.seconds[direction])
        ratio = row.ns_per_pixel(direction) / first.ns_per_pixel(direction)
        text += f"{milliseconds:>8.0f} ms{row.ns_per_pixel(direction):>10.0f}{ratio:>7.2f}"
        text += f"{row.peak_mb[direction]:>5.0f} MB"
    return text


def _result(row: Row, first: Row) -> dict[str, Any]:
    result: dict[str, Any] = {"width": row.size[0], "height": row.size[1], "bytes": len(row.frame)}
    for direction in ("encode", "decode"):
        result |= {
            f"{direction}_ms": round(1e3 * statistics.median(row.seconds[direction]), 1),
            f"{direction}_ns_per_pixel": round(row.ns_per_pixel(direction), 1),
            f"{direction}_ratio": round(row.ns_per_pixel(direction) / first.ns_per_pixel(direction), 3),
            f"{direction}_peak_mb": round(row.peak_mb[direction], 1),
            f"{direction}_peak_bytes_per_pixel": round(row.peak_mb[direction] * 1e6 / (row.size[0] * row.size[1]), 1),
        }
    return result


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _peak(direction: str, data: bytes, bundle: Path | None, threads: int) -> float:
    """Peak resident memory in MB of a process that does it twice."""
    arguments = [direction, str(threads), *([str(bundle)] if bundle else [])]
    answer = subprocess.run(
        [sys.executable, "-m", "aeic_tools.speed.by_size", *arguments], input=data, stdout=subprocess.PIPE, check=True
    )
    return float(answer.stdout)


def main(direction: str, threads: str, bundle: str | None = None) -> None:
    """In the process that :func:`_peak` starts: prints the peak in MB."""
    data = sys.stdin.buffer.read()
    work: Callable[[], object]
    if direction == "encode":
        from edge_encoder.encoding.encoder import Encoder

        encoder = Encoder.from_bundle(bundle, threads=int(threads))
        work = lambda: encoder.encode(data)  # noqa: E731 - the other branch needs another name
    else:
        from cloud_decoder.inference.decoder import Decoder, DecoderSettings

        decoder = Decoder.from_bundle(bundle, settings=DecoderSettings(threads=int(threads)))
        work = lambda: decoder.decode([data])  # noqa: E731
    work()
    work()
    print(_peak_bytes() / 1e6)


def _peak_bytes() -> int:
    """Of this process's resident memory. Linux keeps ``ru_maxrss`` over exec, so that it may be the parent's."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
