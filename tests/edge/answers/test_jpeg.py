"""A JPEG fits into its bytes, at the best quality and size that do."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from aeic.errors import RateError
from aeic.pixels import load_picture
from edge_encoder.answers.jpeg import jpeg_within
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
    with pytest.raises(RateError, match="100 bytes"):
        jpeg_within(rgb, 100)
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    assert len(jpeg_within(noise, 1500)) <= 1500
