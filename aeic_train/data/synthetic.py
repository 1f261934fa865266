"""Synthetic non-photographic pictures: flat colours, ramps, blocks and text on a page, noise.

A codec trained on photographs alone shifts flat grey by a few levels and rings at the border of a white page. Some
synthetic pictures among the crops prevent this.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
CORNERS = ((0, 0, 0), (255, 255, 255), (128, 128, 128))


def synthetic_crop(size: int, rng: random.Random) -> Pixels:
    """A picture of one kind, uint8 (size, size, 3): half of them flat, because a shift is visible there."""
    kind = rng.choices((flat, ramp, page, text, noise), (0.5, 0.2, 0.1, 0.1, 0.1))[0]
    return kind(size, rng)


def flat(size: int, rng: random.Random) -> Pixels:
    """One colour."""
    return np.full((size, size, 3), colour(rng), np.uint8)


def ramp(size: int, rng: random.Random) -> Pixels:
    """From one colour to another, in any direction."""
    a, b = (np.array(colour(rng), np.float32) for _ in range(2))
    x, y = rng.uniform(-1, 1), rng.uniform(-1, 1)
    along = np.add.outer(y * np.arange(size), x * np.arange(size)).astype(np.float32)
    along = (along - along.min()) / max(float(np.ptp(along)), 1e-6)
    return (a + along[..., None] * (b - a)).round().astype(np.uint8)


def page(size: int, rng: random.Random) -> Pixels:
    """Rectangles of one colour each on a flat ground: sharp edges next to flat areas."""
    picture = flat(size, rng)
    for _ in range(rng.randint(1, 6)):
        top, left = rng.randrange(size), rng.randrange(size)
        picture[top : top + rng.randint(4, size), left : left + rng.randint(4, size)] = colour(rng)
    return picture


def text(size: int, rng: random.Random) -> Pixels:
    """Lines of made-up words in Pillow's own typeface, of one size and colour, on a flat ground."""
    image = Image.fromarray(flat(size, rng))
    height = rng.randint(10, 48)
    ink, font = colour(rng), ImageFont.load_default(height)
    for top in range(rng.randrange(height), size, round(1.3 * height)):
        words = ("".join(rng.choices(LETTERS, k=rng.randint(1, 9))) for _ in range(1 + 2 * size // height))
        ImageDraw.Draw(image).text((rng.randint(-height, height), top), " ".join(words), ink, font)
    return np.asarray(image)


def noise(size: int, rng: random.Random) -> Pixels:
    """A colour with noise of any strength, the same in all three channels or not."""
    source = np.random.default_rng(rng.getrandbits(32))
    grain = source.normal(0, rng.uniform(2, 80), (size, size, rng.choice((1, 3))))
    return np.clip(np.array(colour(rng)) + grain, 0, 255).astype(np.uint8)


def colour(rng: random.Random) -> tuple[int, int, int]:
    """Black, white, middle grey, any grey, a pure colour or any colour."""
    if (kind := rng.random()) < 0.35:
        return rng.choice(CORNERS)
    if kind < 0.5:
        return (rng.randrange(256),) * 3
    if kind < 0.65:
        return rng.choice((0, 255)), rng.choice((0, 255)), rng.choice((0, 255))
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)
