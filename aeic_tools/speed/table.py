"""Encode and decode times of any bundles beside the published ones, by device and size of the picture.

    aeic bench speed-table [--bundle models/aeic-se-nano --bundle models/se] [--device auto] [--sizes 768x512,1920x1088]

Each bundle and size is measured in a separate process: picture to frame and frame to picture, pixels in memory, both
with the entropy coding; medians after one warm-up, and the peak memory. The results are added to OUT/speed.json by the
name of the device, so runs on several machines come together, and OUT/speed.md is written from it. What was not run is
an empty cell. speed.json has the versions of AEIC and, on a GPU, of torch and the driver. The published times are those
of the paper (arXiv 2512.12229), on a GTX 1080 Ti and an RTX 4090D. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import aeic
from aeic.runtime.driver import driver_version
from aeic_tools.extras import needs
from aeic_tools.machine import processor
from aeic_tools.speed.single import median_ms

SIZES = ("768x512", "1920x1088")
Cell = float | str
PUBLISHED: dict[str, dict[str, tuple[Cell, Cell, Cell, Cell]]] = {
    "GTX 1080 Ti (paper)": {
        "ELIC": (302.0, 458.0, 1010.1, 1648.9),
        "EVC-Small": (34.7, 32.1, 146.6, 120.5),
        "PerCo": ("OOM", "OOM", "OOM", "OOM"),
        "DiffEIC": (1002.4, 12742.0, "OOM", "OOM"),
        "DLF": (493.9, 663.1, "OOM", "OOM"),
        "StableCodec": (328.2, 709.3, "OOM", "OOM"),
        "AEIC-ME": (60.3, 433.4, 284.0, 3783.1),
        "AEIC-SE": (22.6, 399.6, 110.4, 3629.4),
    },
    "RTX 4090D (paper)": {
        "ELIC": (90.4, 171.1, 300.5, 465.3),
        "EVC-Small": (20.0, 14.4, 35.3, 33.6),
        "PerCo": (245.2, 2841.6, "OOM", "OOM"),
        "DiffEIC": (153.7, 4785.1, 1935.4, 50786.5),
        "DLF": (94.6, 152.1, 508.1, 962.5),
        "StableCodec": (98.9, 192.9, 538.4, 1225.0),
        "AEIC-ME": (37.1, 106.7, 58.7, 845.3),
        "AEIC-SE": (14.0, 104.2, 27.9, 836.2),
    },
}
"""Milliseconds to encode and to decode 768x512, then the same for 1920x1088."""


def measure(bundle: Path, size: str, device: str, threads: int, reps: int, picture: Path) -> dict[str, Any]:
    """Milliseconds and peak bytes of this process, for a picture scaled to ``size`` (WIDTHxHEIGHT)."""
    import numpy as np
    from PIL import Image

    with needs("edge-cpu and cloud-cpu"):
        from cloud_decoder.inference.decoder import Decoder, DecoderSettings
        from edge_encoder.encoding.encoder import Encoder
    width, height = map(int, size.split("x"))
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB").resize((width, height)))
    encoder = Encoder.from_bundle(bundle, threads=threads)
    decoder = Decoder.from_bundle(bundle, device, DecoderSettings(threads=threads))
    frame = encoder.encode(pixels).data
    encode_ms = median_ms(lambda: encoder.encode(pixels), reps)
    decode_ms = median_ms(lambda: decoder.decode([frame]), reps)
    return {
        "bundle": f"{encoder.bundle.name} {encoder.bundle.fingerprint}",
        "bytes": len(frame),
        "encode_ms": round(encode_ms, 1),
        "decode_ms": round(decode_ms, 1),
        "peak_bytes": _peak_bytes(),
        "versions": _versions(decoder.device),
    }


def _versions(device: str) -> dict[str, str]:
    """Of this program and, on a GPU, of torch and the driver."""
    if not device.startswith("cuda"):
        return {"aeic": aeic.__version__}
    import torch

    return {"aeic": aeic.__version__, "torch": torch.__version__, "driver": driver_version()}


def _peak_bytes() -> int | None:
    """This process's peak memory, if the system reports it."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def device_name(device: str) -> str:
    """What the rows of this machine are called."""
    if not device.startswith("cuda"):
        return processor()
    import torch

    return torch.cuda.get_device_name(device)


def table(measured: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> str:
    """Markdown. ``measured``: device, then bundle, then size, then what :func:`measure` returns."""
    sizes = [*SIZES, *sorted({s for of in measured.values() for rows in of.values() for s in rows} - set(SIZES))]
    head = [f"{what} {size}" for size in sizes for what in ("encode", "decode")]
    lines = ["Milliseconds for one picture, with entropy coding, and in brackets frames a second. Empty: not run.\n"]
    lines += ["| device | codec | " + " | ".join(head) + " | GB |", "|---" * (3 + len(head)) + "|"]
    for device, methods in PUBLISHED.items():
        for method, cells in methods.items():
            padded = [*map(_cell, cells), *[""] * (len(head) - len(cells))]
            lines.append(f"| {device} | {method} | " + " | ".join(padded) + " |  |")
    for device, bundles in measured.items():
        for name, rows in bundles.items():
            found = [rows.get(size, {}).get(f"{what}_ms") for size in sizes for what in ("encode", "decode")]
            peak = max((row["peak_bytes"] or 0 for row in rows.values()), default=0)
            memory = f"{peak / 1e9:.1f}" if peak else ""
            lines.append(f"| {device} | {name} | " + " | ".join(map(_cell, found)) + f" | {memory} |")
    return "\n".join(lines) + "\n"


def _cell(value: Cell | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.1f} [{1e3 / value:.1f}]"


def _size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d{1,3}x[1-9]\d{1,3}", text):
        raise argparse.ArgumentTypeError(f"{text}: give WIDTHxHEIGHT, such as 768x512")
    return text


def main(argv: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="aeic bench speed-table", description=__doc__, formatter_class=form)
    parser.add_argument("--bundle", "-m", type=Path, action="append", help="repeatable; default: the one in models/")
    parser.add_argument("--picture", type=Path, default=Path("examples/owl.jpg"))
    parser.add_argument("--sizes", default=",".join(SIZES), help="with commas")
    parser.add_argument(
        "--device", default="auto", help="of the decoder, as AEIC_CLOUD_DEVICE: auto, onnx, cpu, cuda, ..."
    )
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/speed"))
    parser.add_argument("--draw", action="store_true", help="only write the table of what OUT/speed.json holds")
    options = parser.parse_args(argv)
    try:
        sizes = [_size(size) for size in options.sizes.split(",")]
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / "speed.json"
    measured: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    if not options.draw:
        from aeic.bundle import default_bundle_path

        device = device_name(options.device)
        context = multiprocessing.get_context("spawn")
        for bundle in options.bundle or [default_bundle_path()]:
            for size in sizes:
                arguments = (bundle, size, options.device, options.threads, options.reps, options.picture)
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    row = pool.submit(measure, *arguments).result()
                measured.setdefault(device, {}).setdefault(row.pop("bundle"), {})[size] = row
                store.write_text(json.dumps(measured, indent=1) + "\n")
    text = table(measured)
    (options.out / "speed.md").write_text(text)
    print(text)
    print(json.dumps({"bench": "speed-table", "measured": measured}))


if __name__ == "__main__":
    main()
