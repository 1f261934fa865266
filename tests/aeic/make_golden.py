"""Make tests/golden again: ``python -m tests.aeic.make_golden``. Only for a changed format, with a new version.

Writes a small bundle, frames made with it, and for each frame the latents that went in and the y_hat that must come
out. Refuses while ``aeic.bitstream.VERSION`` is still the version of the streams that are there, unless told
``--same-version`` (for adding streams, never for changing them: frames of that version exist in the world).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from aeic.bitstream import VERSION, Frame
from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from tests.support.tiny_bundle import write_tiny_bundle

GOLDEN = Path(__file__).parents[1] / "golden"
BUNDLE_SEED = 2026
STREAMS = [  # name, width, height, rate, spread of y
    ("smallest", 16, 16, 0, 4.0),
    ("all-zero", 64, 64, 0, 0.0),
    ("odd-sides", 333, 77, 1, 8.0),
    ("wide", 640, 64, 0, 16.0),
    ("tall", 65, 449, 1, 2.0),
    ("clipped", 128, 128, 1, 900.0),
    ("photo-size", 768, 512, 1, 6.0),
]


def latents(width: int, height: int, spread: float, seed: int) -> np.ndarray[Any, Any]:
    """(8, h, w) float32 in quarter steps: partly smooth, partly noise."""
    rng = np.random.default_rng(seed)
    shape = (8, *Frame(width, height, 0, "000000", b"").latent_size)
    smooth = np.cumsum(rng.integers(-4, 5, shape), axis=2) + np.cumsum(rng.integers(-4, 5, shape), axis=1)
    y: np.ndarray[Any, Any] = np.rint((smooth / 4 + rng.normal(size=shape)) * spread) / 4
    return y.astype(np.float32)


def make(same_version: bool) -> int:
    """Write everything; returns the exit code."""
    listing = GOLDEN / "golden.json"
    if listing.exists() and json.loads(listing.read_text())["version"] == VERSION and not same_version:
        print(
            f"the golden streams are of version {VERSION} already: raise aeic.bitstream.VERSION first", file=sys.stderr
        )
        return 1
    shutil.rmtree(GOLDEN / "bundle", ignore_errors=True)
    codec = LatentCodec(Bundle.load(write_tiny_bundle(GOLDEN / "bundle", BUNDLE_SEED)), threads=1)
    entries = []
    for seed, (name, width, height, rate, spread) in enumerate(STREAMS):
        y = latents(width, height, spread, seed)
        data = codec.encode(y, rate, width, height)
        decoded = codec.decode(data)
        (GOLDEN / f"{name}.aeic").write_bytes(data)
        y_hat = decoded.y_hat * codec.bundle.tables.gains[rate][:, None, None]  # gains are powers of two here: exact
        np.savez_compressed(GOLDEN / f"{name}.npz", y=y, symbols=decoded.symbols, y_hat=y_hat)
        entries.append(
            {
                "name": name,
                "width": width,
                "height": height,
                "rate": rate,
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "latents": decoded.digest,
            }
        )
    listing.write_text(json.dumps({"version": VERSION, "streams": entries}, indent=1) + "\n")
    print(f"{len(entries)} streams, {sum(entry['bytes'] for entry in entries)} bytes, in {GOLDEN}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="make the golden streams again")
    parser.add_argument("--same-version", action="store_true")
    sys.exit(make(parser.parse_args().same_version))
