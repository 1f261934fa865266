"""Tiles of the UNet and the picture decoder: the grid, the blend, and one tile equal to none."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from aeic_nets.tiling import Steps, _in_step, _spans, _starts, _steps, blend_tiles, decode_tiled
from tests.support.models.official_model import small_model


def test_the_grid_of_the_unet_ends_at_the_border() -> None:
    assert _starts(192, 192, 64) == [0]
    assert _starts(240, 96, 32) == [0, 64, 128, 144]
    assert _starts(200, 192, 64) == [0, 8]


def test_blending_what_does_not_change_changes_nothing() -> None:
    x = torch.randn(2, 3, 40, 24)
    for batch in (1, 3):
        torch.testing.assert_close(blend_tiles(lambda tile: 2 * tile, x, 16, 8, batch), 2 * x)


@pytest.mark.parametrize("sides", [(8, 100), (5, 300), (1, 300), (100, 8), (9, 40)])
def test_a_panorama_that_is_narrower_than_the_overlap_is_covered(sides: tuple[int, int]) -> None:
    x = torch.randn(1, 3, *sides)
    torch.testing.assert_close(blend_tiles(lambda tile: 2 * tile, x, 16, 8), 2 * x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_blending_in_half_precision_has_weights_at_the_corners(dtype: torch.dtype) -> None:
    """Those of a corner are 2e-10, which is nothing in float16: nothing over nothing is no number."""
    x = torch.randn(1, 3, 40, 24).to(dtype)
    torch.testing.assert_close(blend_tiles(lambda tile: 2 * tile, x, 16, 8), 2 * x.float())


def test_a_variance_beyond_float16_does_not_erase_the_picture() -> None:
    decoder = small_model().vae.decoder
    norm = decoder.mid_block.resnets[0].norm1

    def tile(values: torch.Tensor) -> Steps:
        return (yield norm, values)

    large = 600 * torch.randn(1, norm.num_channels, 12, 10)
    with torch.no_grad():
        half, full = _in_step([tile(large.half())])[0], norm(large)
    torch.testing.assert_close(half, full, atol=0.01, rtol=0.01)


def test_the_spans_of_the_decoder_cover_the_side_once() -> None:
    for side in (183, 240, 344, 512, 1024):
        spans = _spans(side, 160, 11)
        assert spans[0].kept[0] == 0
        assert spans[-1].kept[1] == side
        assert all(a.kept[1] == b.kept[0] for a, b in pairwise(spans))
        assert all(s.read[0] <= s.kept[0] and s.kept[1] <= s.read[1] for s in spans)
    assert [span.kept for span in _spans(240, 160, 11)] == [(0, 139), (139, 240)]


def test_one_tile_in_steps_is_the_decoder_itself() -> None:
    decoder = small_model().vae.decoder
    x = torch.randn(1, 16, 12, 10)
    with torch.no_grad():
        torch.testing.assert_close(_in_step([_steps(decoder, x)])[0], decoder(x), atol=1e-4, rtol=1e-4)


def test_several_tiles_make_a_whole_picture() -> None:
    decoder = small_model().vae.decoder
    x = torch.randn(1, 16, 12, 40)
    with torch.no_grad():
        decoder.mid_block.attentions[0].to_out[0].weight.zero_()  # attention stays in a tile: leave it out
        tiled, whole = decode_tiled(decoder, x, tile=16, margin=4), decoder(x)
    assert tiled.shape == whole.shape
    assert torch.isfinite(tiled).all()
    assert (tiled - whole).abs().mean() < 0.2 * whole.abs().mean()
