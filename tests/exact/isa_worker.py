"""What one machine does in the test of isa.py: encode a photograph, or decode frames. Needs aeic, numpy, Pillow only.

    python isa_worker.py encode BUNDLE PHOTO FRAME LEVEL THREADS
    python isa_worker.py decode BUNDLE LEVEL THREADS FRAME...

Prints one JSON object: the machine, and the digest of the decoded latents by frame.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from aeic.pixels import load_picture, pad_picture, to_tensor


def set_level(level: str) -> None:
    """Make every session of the bundle use one graph-optimisation level."""
    plain = onnxruntime.SessionOptions

    def levelled() -> onnxruntime.SessionOptions:
        options = plain()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
        return options

    onnxruntime.SessionOptions = levelled


def main() -> None:
    what, folder, *rest = sys.argv[1:]
    bundle = Bundle.load(folder)
    digests = {}
    if what == "encode":
        photo, frame, level, threads = rest
        set_level(level)
        rgb = load_picture(Path(photo))
        image = to_tensor(pad_picture(rgb))
        (y,) = bundle.session("analysis", int(threads)).run(None, {"image": image})
        height, width = rgb.shape[:2]
        data = LatentCodec(bundle, int(threads)).encode(np.ascontiguousarray(y[0]), bundle.default_rate, width, height)
        Path(frame).write_bytes(data)
        digests[Path(frame).name] = f"{len(data)} bytes"
    else:
        level, threads, *frames = rest
        set_level(level)
        codec = LatentCodec(bundle, int(threads))
        for frame in frames:
            digests[Path(frame).name] = codec.decode(Path(frame).read_bytes()).digest
    print(json.dumps({"machine": platform.machine(), "level": level, "threads": int(threads), "frames": digests}))


if __name__ == "__main__":
    main()
