"""What a request for a region gains: `python -m benchmarks.look_closer [FOLDER]`.

The largest photographs of a folder (examples/ by default) are brought to 1920x1080 and sent as an overview of 1 kB.
Then a region of a sixteenth of each, 480x270, is sent as an answer of 1.5 kB, cropped and scaled as a box does it. Both
are enlarged to the pixels of the original, and the PSNR inside the region is compared. The region is the one with the
most detail among those of a grid of 4 by 4, or with --middle the one in the middle. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from aeic.pixels import Pixels, load_picture
from aeic_tools.comparison import psnr
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from edge_encoder.encoding.encoder import Encoder

WIDTH, HEIGHT, PARTS = 1920, 1080, 4
WIDE, TALL = WIDTH // PARTS, HEIGHT // PARTS


def main() -> int:
    """Prints the PSNR inside the region of the overview and of the answer, and the mean gain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("examples"))
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--overview", type=int, default=1000, help="bytes")
    parser.add_argument("--region", type=int, default=1500, help="bytes")
    parser.add_argument("--middle", action="store_true", help="the region in the middle")
    parser.add_argument("--out", type=Path, help="folder for the pictures")
    given = parser.parse_args()
    encoder, decoder = Encoder.from_bundle(threads=1), Decoder.from_bundle(None, "onnx", DecoderSettings(threads=1))

    def coded(rgb: Pixels, limit: int, size: tuple[int, int]) -> tuple[Pixels, int]:
        made = encoder.encode(np.ascontiguousarray(rgb), max_bytes=limit)
        return enlarged(decoder.decode([made.data])[0], size), len(made.data)

    gains = []
    print("photograph                 from        x,y        overview  answer   gain (dB)")
    for path in largest(given.folder, given.count):
        rgb, was = full_hd(load_picture(path))
        x, y = ((WIDTH - WIDE) // 2, (HEIGHT - TALL) // 2) if given.middle else busiest(rgb)
        part = (slice(y, y + TALL), slice(x, x + WIDE))
        overview, first = coded(rgb, given.overview, (WIDTH, HEIGHT))
        answer, second = coded(rgb[part], given.region, (WIDE, TALL))
        before, after = psnr(rgb[part], overview[part]), psnr(rgb[part], answer)
        gains.append(after - before)
        print(f"{path.name[:24]:26s} {was:10s} {x:5d},{y:<5d} {before:8.2f} {after:8.2f} {after - before:+8.2f}")
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            shown = np.concatenate([overview[part], answer, rgb[part]], axis=1)
            Image.fromarray(shown).save(given.out / f"{path.stem}.webp", quality=80)
            print(f"    overview {first} bytes, answer {second} bytes -> {given.out / path.stem}.webp")
    print(json.dumps({"pictures": len(gains), "mean_gain_db": round(float(np.mean(gains)), 2)}))
    return 0


def largest(folder: Path, count: int) -> list[Path]:
    """The photographs of the most pixels."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".jpg", ".png", ".webp"):
            with Image.open(path) as image:
                found.append((-image.width * image.height, path))
    return [path for _, path in sorted(found)[:count]]


def full_hd(rgb: Pixels) -> tuple[Pixels, str]:
    """The middle of a photograph at 1920x1080, and its own size."""
    height, width, _ = rgb.shape
    scale = max(WIDTH / width, HEIGHT / height)
    whole = enlarged(rgb, (max(WIDTH, round(width * scale)), max(HEIGHT, round(height * scale))))
    top, left = (whole.shape[0] - HEIGHT) // 2, (whole.shape[1] - WIDTH) // 2
    return whole[top : top + HEIGHT, left : left + WIDTH], f"{width}x{height}"


def enlarged(rgb: Pixels, size: tuple[int, int]) -> Pixels:
    """The picture at ``size`` (width, height), by Lanczos."""
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))


def busiest(rgb: Pixels) -> tuple[int, int]:
    """Left and top of the part with the most detail, by the mean size of the differences between neighbours."""
    grey = rgb.mean(axis=2)
    detail = np.abs(np.diff(grey, axis=1))
    places = [(x * WIDE, y * TALL) for y in range(PARTS) for x in range(PARTS)]
    return max(places, key=lambda place: float(detail[place[1] : place[1] + TALL, place[0] : place[0] + WIDE].mean()))


if __name__ == "__main__":
    sys.exit(main())
