"""The seams of tiles cannot be seen: photographs synthesised in tiles beside the same photographs synthesised whole.

The tiles are smaller than those of the service and overlap by as much, so they have more seams in fewer pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aeic.pixels import load_picture
from cloud_decoder import tiling
from cloud_decoder.inference.decoder import Decoder
from edge_encoder.encoding.encoder import Encoder
from tests.support.roots import ROOT

HEIGHT, WIDTH = 384, 512
TILE_PIXELS = 256 * 320
PICTURES = 20
LEAST_PSNR = 40.0
MOST_LEVELS = 40
"""Of 255, at one pixel and in one channel."""
MOST_STEP = 1.1
"""The mean step from one pixel to the next where blending begins or ends, beside that of the whole picture."""


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tiling, "WHOLE_PIXELS", TILE_PIXELS)
    tiling._tile_shape.cache_clear()
    yield
    tiling._tile_shape.cache_clear()


def crops() -> list[NDArray[np.uint8]]:
    """Two of each photograph that is large enough: its top left and its bottom right."""
    found = []
    for path in sorted(Path(ROOT / "examples").iterdir()):
        if path.suffix in (".jpg", ".webp", ".png"):
            rgb = load_picture(path)
            if rgb.shape[0] >= HEIGHT and rgb.shape[1] >= WIDTH:
                found += [rgb[:HEIGHT, :WIDTH], rgb[-HEIGHT:, -WIDTH:]]
    return found[:PICTURES]


def steps(picture: NDArray[np.uint8], rows: set[int], columns: set[int]) -> float:
    """The mean difference of neighbouring pixels across these rows and columns."""
    values = picture.astype(np.float32)
    down = [np.abs(values[row] - values[row - 1]).mean() for row in rows]
    across = [np.abs(values[:, column] - values[:, column - 1]).mean() for column in columns]
    return float(np.mean(down + across))


def test_tiles_look_like_the_whole_picture(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = Encoder.from_bundle(), Decoder.from_bundle(device="onnx")
    pictures = crops()
    assert len(pictures) == PICTURES
    psnrs, levels, ratios = [], [], []
    for rgb in pictures:
        latents = decoder.entropy_decode(encoder.encode(rgb).data)
        with monkeypatch.context() as patch:
            patch.setattr(tiling, "tile_shape", lambda frame: frame.latent_size)
            (whole,) = decoder.synthesise([latents])
        assembler = tiling.TileAssembler(latents.y_hat, latents.frame)
        assert not assembler.whole
        (tiled,) = decoder.synthesise([latents])
        difference = tiled.astype(np.float32) - whole
        psnrs.append(10 * np.log10(255**2 / max(float(np.square(difference).mean()), 1e-9)))
        levels.append(int(np.abs(difference).max()))
        edges = _edges(assembler._tops, assembler.shape[0], HEIGHT), _edges(assembler._lefts, assembler.shape[1], WIDTH)
        ratios.append(steps(tiled, *edges) / steps(whole, *edges))
    print(f"PSNR {min(psnrs):.1f} dB, levels {max(levels)}, step {max(ratios):.3f}")
    assert min(psnrs) >= LEAST_PSNR
    assert max(levels) <= MOST_LEVELS
    assert max(ratios) <= MOST_STEP


def _edges(starts: list[int], tile: int, length: int) -> set[int]:
    """Where a tile begins or ends inside the picture."""
    ends = {32 * start for start in starts} | {32 * (start + tile) for start in starts}
    return {end for end in ends if 0 < end < length}
