"""What thin pictures lose: `python -m benchmarks.thin_pictures`.

A strip of a few rows is cut from each photograph of examples/ and coded by itself. Its PSNR is compared with that of
the same rows in the whole photograph, coded at the same rate point. Sides are padded to multiples of 64 by reflection,
so a strip of 16 rows is a quarter of what is coded, and the network sees mirrored rows where the photograph went on.
The last line is JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from aeic.pixels import Pixels, load_picture
from aeic_tools.comparison import psnr
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from edge_encoder.encoding.encoder import Encoder

ROWS = (16, 32, 64, 128)


def main() -> int:
    """Prints the mean loss in dB for each height, and for one strip repeated to several lengths."""
    encoder, decoder = Encoder.from_bundle(threads=1), Decoder.from_bundle(None, "onnx", DecoderSettings(threads=1))

    def coded(rgb: Pixels) -> Pixels:
        return decoder.decode([encoder.encode(np.ascontiguousarray(rgb)).data])[0]

    losses: dict[int, list[float]] = {rows: [] for rows in ROWS}
    paths = sorted(path for path in Path("examples").iterdir() if path.suffix in (".jpg", ".png", ".webp"))
    for path in paths:
        rgb = load_picture(path)
        whole, top = coded(rgb), rgb.shape[0] // 2 // 64 * 64
        for rows in ROWS:
            part = slice(top, top + rows)
            losses[rows].append(psnr(rgb[part], whole[part]) - psnr(rgb[part], coded(rgb[part])))
    mean = {rows: round(float(np.mean(values)), 2) for rows, values in losses.items()}
    print("rows  mean loss  worst  (dB, against the same rows in the whole picture)")
    for rows, values in losses.items():
        print(f"{rows:4d}  {mean[rows]:9.2f}  {max(values):5.2f}")
    strip = load_picture(paths[-1])[:16]
    mirrored = np.concatenate([strip, strip[:, ::-1]], axis=1)
    long = np.tile(mirrored, (1, -(-4096 // mirrored.shape[1]), 1))[:, :4096]
    lengths = {width: round(psnr(long[:, :width], coded(long[:, :width])), 2) for width in (mirrored.shape[1], 4096)}
    print(f"PSNR of 16 rows by length: {lengths}")
    print(json.dumps({"mean_loss_db": mean, "psnr_by_length": lengths}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
