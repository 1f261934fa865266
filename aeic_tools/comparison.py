"""Makes the pictures of the comparison on the cloud's page: a frame beside JPEG, WebP and AVIF with as many bytes.

``python -m aeic_tools.comparison`` writes ``cloud_decoder/http_api/static/compare/`` from ``examples/``. Run it again
when the model that ships changes; a test compares the fingerprints.

The other formats get every chance. Of all sizes and qualities whose file has no more bytes than the frame, the one with
the highest PSNR is kept, after it has been enlarged to the size of the photograph. ``smallest`` is the fewest bytes
that a format reaches without scaling the photograph down.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aeic.pixels import load_picture

EXAMPLES = Path(__file__).parents[1] / "examples"
OUT = Path(__file__).parents[1] / "cloud_decoder" / "http_api" / "static" / "compare"
INDEX = "index.json"
SHOWN = {"chickens.jpg": "Hens", "mont_saint_michel.webp": "Mont-Saint-Michel", "owl.jpg": "Owl"}
"""Files of ``examples/`` whose terms ask for no attribution, and their titles."""
CODECS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "jpeg": ("jpg", 1, {"optimize": True, "progressive": True, "subsampling": "4:2:0"}),
    "webp": ("webp", 0, {"method": 6}),
    "avif": ("avif", 0, {"speed": 4}),
}
"""Format -> (suffix of files, lowest quality, options of the encoder)."""
SCALES = (1.0, 0.75, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2, 0.16, 0.13, 0.1, 0.08)
_TOP_QUALITY = 95
_SHOWN_AS: dict[str, Any] = {"quality": 88, "method": 6}


@dataclass(frozen=True)
class BestFile:
    """A file of another format with at most so many bytes; its size in pixels, and its PSNR in dB after enlarging."""

    data: bytes
    width: int
    height: int
    psnr: float
    smallest: int


def best_file(photograph: NDArray[np.uint8], codec: str, limit_bytes: int) -> BestFile:
    """The best that ``codec`` makes of a photograph (H, W, 3) in ``limit_bytes``. ``ValueError`` if nothing fits."""
    image = Image.fromarray(photograph)
    _, lowest, _ = CODECS[codec]
    best: BestFile | None = None
    smallest = len(_encoded(image, codec, lowest))
    for scale in SCALES:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        scaled = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
        data = _largest_that_fits(scaled, codec, limit_bytes)
        if data is None:
            continue
        with Image.open(io.BytesIO(data)) as opened:
            back = opened.convert("RGB").resize(image.size, Image.Resampling.BICUBIC)
        found = BestFile(data, *size, psnr(photograph, np.asarray(back)), smallest)
        if best is None or found.psnr > best.psnr:
            best = found
    if best is None:
        raise ValueError(f"{codec} has no file of {limit_bytes} bytes")
    return best


def _largest_that_fits(image: Image.Image, codec: str, limit_bytes: int) -> bytes | None:
    _, low, _ = CODECS[codec]
    high, best = _TOP_QUALITY, None
    while low <= high:
        middle = (low + high) // 2
        data = _encoded(image, codec, middle)
        if len(data) <= limit_bytes:
            best, low = data, middle + 1
        else:
            high = middle - 1
    return best


def _encoded(image: Image.Image, codec: str, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, codec.upper(), quality=quality, **CODECS[codec][2])
    return out.getvalue()


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Of two uint8 (H, W, 3) of one size, in dB over all three colours; infinite for equal ones."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def make(out: Path, bundle: Path | None = None, photographs: Sequence[Path] = ()) -> None:
    """Write all pictures and ``index.json`` to the folder ``out``."""
    from cloud_decoder.inference.decoder import Decoder, DecoderSettings
    from edge_encoder.encoding.encoder import Encoder

    out.mkdir(parents=True, exist_ok=True)
    encoder = Encoder.from_bundle(bundle)
    decoder = Decoder.from_bundle(bundle, "onnx", DecoderSettings(isolate=False))
    shown = []
    try:
        for path in photographs or [EXAMPLES / name for name in SHOWN]:
            photograph = load_picture(path.read_bytes())
            frame = encoder.encode(photograph).data
            [reconstruction] = decoder.decode([frame])
            name = path.stem.replace("_", "-")
            height, width, _ = photograph.shape
            for what, pixels in (("original", photograph), ("frame", reconstruction)):
                Image.fromarray(pixels).save(out / f"{name}-{what}.webp", **_SHOWN_AS)
            baselines = {}
            for codec, (suffix, _, _) in CODECS.items():
                found = best_file(photograph, codec, len(frame))
                (out / f"{name}-{codec}.{suffix}").write_bytes(found.data)
                baselines[codec] = {
                    "file": f"{name}-{codec}.{suffix}",
                    "bytes": len(found.data),
                    "width": found.width,
                    "height": found.height,
                    "smallest": found.smallest,
                }
            title = SHOWN.get(path.name, path.stem)
            entry = {"name": name, "title": title, "width": width, "height": height, "bytes": len(frame)}
            shown.append(entry | {"file_bytes": path.stat().st_size, "baselines": baselines})
    finally:
        decoder.close()
    about = {"model": encoder.bundle.name, "fingerprint": encoder.bundle.fingerprint, "pictures": shown}
    (out / INDEX).write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder that is written")
    make(parser.parse_args().out)
