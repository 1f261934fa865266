"""What the colour correction does to PSNR and file size.

`python -m benchmarks.colour_fix ../shared/data/val --every 3 --limit 12`

Each photograph of a folder is coded at the default rate point with and without the statistics of its colours. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from aeic.pixels import SUFFIXES, load_picture
from aeic_tools.comparison import psnr
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from edge_encoder.encoding import ColourFixChoice
from edge_encoder.encoding.encoder import Encoder

CHOICES: tuple[ColourFixChoice, ColourFixChoice] = ("never", "always")


def main() -> int:
    """Prints PSNR and bytes of each picture, and their means."""
    parser = argparse.ArgumentParser(description="PSNR and size of frames with and without colour statistics")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every Nth picture")
    parser.add_argument("--limit", type=int, default=None, help="of those, the first N")
    parser.add_argument("--bundle", type=Path, default=None)
    given = parser.parse_args()
    paths = sorted(path for path in given.folder.iterdir() if path.suffix.lower() in SUFFIXES)
    encoder = Encoder.from_bundle(given.bundle, threads=1)
    decoder = Decoder.from_bundle(given.bundle, "onnx", DecoderSettings(threads=1))
    rows = []
    print("   never          always          picture")
    for path in paths[:: given.every][: given.limit]:
        rgb = load_picture(path)
        row: list[float] = []
        for choice in CHOICES:
            data = encoder.encode(rgb, colour_fix=choice).data
            row += [psnr(rgb, decoder.decode([data])[0]), len(data)]
        rows.append(row)
        print(f"{row[0]:6.2f} {row[1]:6.0f}   {row[2]:6.2f} {row[3]:6.0f}   {path.name}")
    before_db, before, after_db, after = np.mean(rows, axis=0)
    better = sum(row[2] > row[0] for row in rows)
    print(f"{before_db:6.2f} {before:6.0f}   {after_db:6.2f} {after:6.0f}   mean of {len(rows)}, {better} are better")
    mean = {"pictures": len(rows), "better": better, "bytes": [round(before, 1), round(after, 1)]}
    print(json.dumps(mean | {"psnr_db": [round(before_db, 2), round(after_db, 2)]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
