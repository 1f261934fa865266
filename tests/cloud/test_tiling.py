"""Tiles: every pixel once, seams that sum to one, whatever the size."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aeic.bitstream import Frame
from aeic.colour_statistics import ColourStatistics
from cloud_decoder import tiling
from cloud_decoder.tiling import OVERLAP, WHOLE_PIXELS, TileAssembler, _starts, _weights, synthesis_cost, tile_shape


def assembler(width: int, height: int, seed: int = 0) -> TileAssembler:
    frame = Frame(width, height, 0, "abcdef", b"")
    y_hat = np.random.default_rng(seed).uniform(-1, 1, (3, *frame.latent_size)).astype(np.float32)
    return TileAssembler(y_hat, frame)


def enlarge(latents: np.ndarray) -> np.ndarray:
    """A generator whose tiles agree where they overlap: each latent becomes 32 x 32 equal pixels."""
    return latents.repeat(32, 1).repeat(32, 2)


def run(one: TileAssembler) -> np.ndarray:
    while tiles := one.tiles():
        for tile in tiles:
            one.put(tile, enlarge(one.cut(tile)))
    return one.finish()


@given(st.integers(1, 256), st.integers(9, 40))
def test_tiles_cover_the_axis_and_weights_sum_to_one(size: int, tile: int) -> None:
    starts = _starts(size, min(tile, size))
    length = min(tile, size)
    assert starts[0] == 0 and starts[-1] + length == size
    assert all(b - a <= max(tile - OVERLAP, 1) for a, b in pairwise(starts))
    total = np.zeros(size * 32)
    for start, weight in zip(starts, _weights(size, [s * 32 for s in starts], length * 32), strict=True):
        assert (weight > 0).all()
        total[start * 32 : (start + length) * 32] += weight
    assert np.allclose(total, 1, atol=1e-5)


@settings(max_examples=4, deadline=None)
@given(st.sampled_from([(1729, 1792), (3500, 960), (960, 3500), (4800, 640), (1200, 2800)]))
def test_a_tiled_picture_equals_the_whole_one(size: tuple[int, int]) -> None:
    width, height = size
    one = assembler(width, height)
    assert one.rows * len(one._lefts) > 1
    whole = enlarge(one._y_hat)[:, :height, :width].transpose(1, 2, 0)
    expected = np.clip(np.rint(whole * np.float32(127.5) + np.float32(127.5)), 0, 255)
    assert np.abs(run(one).astype(int) - expected).max() <= 1
    assert one.done and one.tiles() == []


def test_a_small_picture_is_one_tile_and_exact() -> None:
    one = assembler(100, 70)
    assert tile_shape(one.frame) == one.frame.latent_size and len(one.tiles()) == 1
    assert run(one).shape == (70, 100, 3)
    assert synthesis_cost(one.frame) == 128 * 128


@pytest.mark.parametrize(("width", "height"), [(100, 70), (3000, 900), (900, 3000)])
@pytest.mark.parametrize("eight_bits", [False, True])
def test_colours_are_corrected_once_over_the_whole_visible_picture(width: int, height: int, eight_bits: bool) -> None:
    """At the end, without the padding; in 8 bits if the device has converted the picture."""
    plain, coloured = assembler(width, height), assembler(width, height)
    coloured.frame = replace(coloured.frame, colour=ColourStatistics((20000, 30000, 45000), (9000, 5000, 12000)))
    expected = run(plain)
    if eight_bits and coloured.whole:
        padded = np.full((*(32 * side for side in coloured.shape), 3), 255, np.uint8)
        padded[:height, :width] = expected
        coloured.put(coloured.tiles()[0], padded)
        found = coloured.finish()
    else:
        found = run(coloured)
    assert coloured.frame.colour is not None
    coloured.frame.colour.correct(expected)
    assert (found == expected).all() and (run(assembler(width, height)) != expected).any()


def test_only_one_band_is_in_memory() -> None:
    one = assembler(1024, 8192)
    assert one._band is not None and one._band.shape == (3, 32 * tile_shape(one.frame)[0], 1024)
    assert one._band.nbytes < 12 * WHOLE_PIXELS


@given(st.integers(16, 8192), st.integers(16, 8192))
def test_tiles_fit_the_budget_and_little_is_computed_twice(width: int, height: int) -> None:
    frame = Frame(width, height, 0, "abcdef", b"")
    tall, wide = tile_shape(frame)
    latents = frame.latent_size[0] * frame.latent_size[1]
    assert tall * wide * 1024 <= max(WHOLE_PIXELS, 0) or (tall, wide) == frame.latent_size
    if min(frame.latent_size) >= 16 and latents > 4096:
        assert synthesis_cost(frame) <= 1.2 * latents * 1024


@pytest.mark.parametrize(("width", "height"), [(3840, 2160), (4096, 2160), (4000, 3000), (7680, 4320), (2560, 1440)])
def test_sizes_of_cameras_cost_hardly_more_than_their_pixels(width: int, height: int) -> None:
    frame = Frame(width, height, 0, "abcdef", b"")
    padded = frame.latent_size[0] * frame.latent_size[1] * 1024
    assert synthesis_cost(frame) <= 1.15 * padded


def test_strips_change_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    in_strips = run(assembler(3000, 900))
    monkeypatch.setattr(tiling, "STRIP_ROWS", 1 << 20)
    assert (run(assembler(3000, 900)) == in_strips).all()


def test_rows_come_in_order() -> None:
    one = assembler(1024, 8192)
    (first, *_) = one.tiles()
    one.put(first, enlarge(one.cut(first)))
    with pytest.raises(ValueError, match="row"):
        one.put(first, enlarge(one.cut(first)))


def test_nan_is_refused() -> None:
    one = assembler(64, 64)
    (tile,) = one.tiles()
    with pytest.raises(FloatingPointError):
        one.put(tile, np.full((3, 64, 64), np.nan, np.float32))
    assert not one.done
