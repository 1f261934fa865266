"""A JPEG fits into its bytes, at the best quality and size that do."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aeic.errors import RateError
from aeic.pixels import load_picture, save_picture
from edge_encoder.answers.jpeg import LEAST_BYTES, jpeg_within
from tests.support.pictures import picture


def test_a_jpeg_fits_and_uses_its_bytes() -> None:
    rgb = load_picture(picture(320, 200))
    before = 0
    for limit in (900, 2000, 5000, 12_000, 60_000):
        data = jpeg_within(rgb, limit)
        assert before <= len(data) <= limit
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "JPEG" and abs(image.width / image.height - 1.6) < 0.1
            if limit == 60_000:
                assert image.size == (320, 200)
        before = len(data)
    assert len(jpeg_within(np.zeros((16, 16, 3), np.uint8), 5000)) >= LEAST_BYTES
    with pytest.raises(RateError, match="100 bytes"):
        jpeg_within(rgb, 100)
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    assert len(jpeg_within(noise, 1500)) <= 1500


def test_a_size_that_cannot_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[int]()

    def save(rgb: np.ndarray, *given: Any) -> bytes:
        tried.append(rgb.shape[0] * rgb.shape[1])
        return save_picture(rgb, *given)

    monkeypatch.setattr("edge_encoder.answers.jpeg.save_picture", save)
    flat = np.full((600, 800, 3), 128, np.uint8)
    with pytest.raises(RateError):
        jpeg_within(flat, LEAST_BYTES - 1)
    assert not tried
    least = len(jpeg_within(flat, 100_000))
    tried.clear()
    assert len(jpeg_within(flat, least - 1)) < least and max(tried) < 600 * 800
    assert len(jpeg_within(flat, least)) == least, "it fits by a byte"
