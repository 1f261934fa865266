"""``aeic bench speed``: how long a picture takes, image bytes to frame bytes and frame bytes to pixels, in process."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aeic_tools.codec_commands import PICTURE_SUFFIXES
from aeic_tools.extras import needs
from aeic_tools.files import UsageError

HEAD = f"{'picture':<24}{'size':>10}{'bytes':>7}{'encode':>10}{'decode':>10}"


def run(pictures: Path, reps: int, bundle: Path | None, threads: int) -> int:
    """Print a table for people and, as the last line, one JSON for programs. Times are medians, in milliseconds."""
    with needs("edge-cpu and cloud-cpu"):
        from cloud_decoder.inference.decoder import Decoder, DecoderSettings
        from edge_encoder.encoding.encoder import Encoder
    paths = [pictures] if pictures.is_file() else sorted(pictures.glob("*") if pictures.is_dir() else [])
    paths = [path for path in paths if path.suffix.lower() in PICTURE_SUFFIXES]
    if not paths:
        raise UsageError(f"no pictures in {pictures}: give a picture or a folder of them")
    encoder = Encoder.from_bundle(bundle, threads=threads)
    decoder = Decoder.from_bundle(bundle, "onnx", DecoderSettings(threads=threads))
    print(
        f"bundle {encoder.bundle.name} {encoder.bundle.fingerprint}, {threads or os.cpu_count()} threads, ONNX Runtime;"
    )
    print(f"each once to warm up, then the median of {reps}\n\n{HEAD}")
    rows: list[dict[str, Any]] = []
    for path in paths:
        data = path.read_bytes()
        encoded = encoder.encode(data)
        row = {
            "name": path.name,
            "width": encoded.width,
            "height": encoded.height,
            "bytes": len(encoded.data),
            "encode_ms": _median_ms(lambda data=data: encoder.encode(data), reps),  # type: ignore[misc]
            "decode_ms": _median_ms(lambda frame=encoded.data: decoder.decode([frame]), reps),  # type: ignore[misc]
        }
        rows.append(row)
        size = f"{row['width']}x{row['height']}"
        print(
            f"{path.name:<24}{size:>10}{row['bytes']:>7}{row['encode_ms']:>7.0f} ms{row['decode_ms']:>7.0f} ms",
            flush=True,
        )
    machine = {"cpu": _processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    settings = {"reps": reps, "warm_up": 1, "threads": threads, "bundle": encoder.bundle.fingerprint}
    print(json.dumps({"bench": "speed", "machine": machine, "settings": settings, "results": rows}))
    return 0


def _median_ms(work: Callable[[], object], reps: int) -> float:
    work()
    times = []
    for _ in range(reps):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def _processor() -> str:
    """The name of the processor if the system gives it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
