"""``aeic bench speed``: how long a picture takes, image bytes to frame bytes and frame bytes to pixels, in process."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from aeic.pixels import SUFFIXES
from aeic_tools.extras import needs
from aeic_tools.files import UsageError
from aeic_tools.machine import processor

HEAD = f"{'picture':<24}{'size':>10}{'bytes':>7}{'encode':>10}{'decode':>10}"


def run(pictures: Path, reps: int, bundle: Path | None, threads: int, *, table: bool = True) -> int:
    """Print a table for people, unless ``table`` is False, and one JSON as the last line. Times are medians in ms."""
    with needs("edge-cpu and cloud-cpu"):
        from cloud_decoder.inference.decoder import Decoder, DecoderSettings
        from edge_encoder.encoding.encoder import Encoder
    paths = pictures_in(pictures)
    encoder = Encoder.from_bundle(bundle, threads=threads)
    decoder = Decoder.from_bundle(bundle, "onnx", DecoderSettings(threads=threads))
    show = print if table else _hide
    show(
        f"bundle {encoder.bundle.name} {encoder.bundle.fingerprint}, {threads or os.cpu_count()} threads, ONNX Runtime;"
    )
    show(f"each once to warm up, then the median of {reps}\n\n{HEAD}")
    rows: list[dict[str, Any]] = []
    for path in paths:
        data = path.read_bytes()
        encoded = encoder.encode(data)
        row = {
            "name": path.name,
            "width": encoded.width,
            "height": encoded.height,
            "bytes": len(encoded.data),
            "encode_ms": median_ms(partial(encoder.encode, data), reps),
            "decode_ms": median_ms(partial(decoder.decode, [encoded.data]), reps),
        }
        rows.append(row)
        size = f"{row['width']}x{row['height']}"
        show(
            f"{path.name:<24}{size:>10}{row['bytes']:>7}{row['encode_ms']:>7.0f} ms{row['decode_ms']:>7.0f} ms",
            flush=True,
        )
    machine = {"cpu": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    settings = {"reps": reps, "warm_up": 1, "threads": threads, "bundle": encoder.bundle.fingerprint}
    print(json.dumps({"bench": "speed", "machine": machine, "settings": settings, "results": rows}))
    return 0


def pictures_in(path: Path) -> list[Path]:
    """The picture, or the pictures in the folder. ``UsageError`` if there is none."""
    paths = [path] if path.is_file() else sorted(path.glob("*") if path.is_dir() else [])
    paths = [each for each in paths if each.suffix.lower() in SUFFIXES]
    if not paths:
        raise UsageError(f"no pictures in {path}: give a picture or a folder of them")
    return paths


def _hide(*values: object, flush: bool = False) -> None:
    """Stands for `print` where only the JSON is wanted."""


def median_ms(work: Callable[[], object], reps: int) -> float:
    """The median time of ``reps`` calls in milliseconds, after one that is not counted."""
    work()
    times = []
    for _ in range(reps):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)
