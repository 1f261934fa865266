"""Tests a bundle on this machine: `python -m edge_encoder.bundle_update.self_test FOLDER`.

staging.py runs it in its own process, since a broken runtime may crash instead of raising.

A synthetic picture is encoded at every rate point and each frame is decoded to latents: the check value of the frame
matches only if the entropy model gives the same numbers twice. The provider is compared with the CPU when it is opened
(encoding/execution_provider.py). One line of JSON reports time and memory; exit code 5 when the bundle cannot be used.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np

from aeic.errors import AeicError
from aeic.latent_codec import LatentCodec
from edge_encoder.encoding.encoder import Encoder
from edge_encoder.settings import EdgeSettings


def check(folder: Path) -> dict[str, object]:
    """What was measured. AeicError when the bundle cannot be used here."""
    encoder = Encoder.from_bundle(folder, 1, provider=EdgeSettings.model_fields["provider"].default)
    encoder.warm_up()
    codec = LatentCodec(encoder.bundle, threads=1)
    y, x = np.mgrid[0:512, 0:768].astype(np.float32)
    waves = np.stack([128 + 90 * np.sin(x / (9 + 8 * c) + y / (31 - 7 * c)) for c in range(3)], -1)
    picture = waves.astype(np.uint8)
    sizes, slowest = [], 0.0
    for rate in encoder.bundle.rates:
        made = encoder.encode(picture, rate.number)
        codec.decode(made.data)
        sizes.append(len(made.data))
        slowest = max(slowest, sum(made.timings.values()))
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return {
        "bundle": encoder.bundle.name,
        "digest": encoder.bundle.digest.hex(),
        "provider": encoder.analysis.provider,
        "bytes_by_rate": sizes,
        "encode_ms": round(1000 * slowest, 1),
        "resident_mb": round(int(peak[1]) / 1024) if peak else None,
    }


def main() -> int:
    """Exit code 0, or 5 with one line on stderr."""
    try:
        print(json.dumps(check(Path(sys.argv[1]))))
    except AeicError as error:
        print(str(error), file=sys.stderr)
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())
