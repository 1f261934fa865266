"""Originals beside reconstructions, with the bytes of each, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TILE_WIDTH, TILE_HEIGHT, GAP, CAPTION = 420, 300, 8, 26
BACKGROUND, INK, FAINT = (24, 24, 26), (238, 238, 238), (160, 160, 166)


@dataclass(frozen=True)
class Exhibit:
    """One row's half: ``original`` and ``reconstruction`` uint8 (H, W, 3), and a caption for each."""

    original: NDArray[np.uint8]
    reconstruction: NDArray[np.uint8]
    original_caption: str
    reconstruction_caption: str


def montage(exhibits: Sequence[Exhibit], columns: int = 2) -> Image.Image:
    """A sheet with ``columns`` pairs to a row; pictures are shrunk to fit their tile, never enlarged."""
    pair_width, row_height = 2 * TILE_WIDTH + GAP, TILE_HEIGHT + CAPTION + GAP
    rows = -(-len(exhibits) // columns)
    sheet = Image.new(
        "RGB", (columns * (pair_width + 3 * GAP) - GAP, max(rows, 1) * (row_height + GAP) + GAP), BACKGROUND
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, exhibit in enumerate(exhibits):
        left = GAP + number % columns * (pair_width + 3 * GAP)
        top = GAP + number // columns * (row_height + GAP)
        sides = (
            (exhibit.original, exhibit.original_caption, FAINT),
            (exhibit.reconstruction, exhibit.reconstruction_caption, INK),
        )
        for side, (pixels, caption, colour) in enumerate(sides):
            picture = Image.fromarray(pixels)
            picture.thumbnail((TILE_WIDTH, TILE_HEIGHT), Image.Resampling.LANCZOS)
            x = left + side * (TILE_WIDTH + GAP)
            sheet.paste(picture, (x + (TILE_WIDTH - picture.width) // 2, top + TILE_HEIGHT - picture.height))
            draw.text((x + TILE_WIDTH // 2, top + TILE_HEIGHT + 4), caption, fill=colour, font=font, anchor="ma")
    return sheet
