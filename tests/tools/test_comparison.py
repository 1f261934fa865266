"""The pictures of the page's comparison: true to the model that ships, and fair to the other formats."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from aeic.bundle import Bundle
from aeic_tools.comparison import CODECS, INDEX, OUT, best_file
from tests.support.roots import EXAMPLES


def test_what_ships_is_of_the_model_that_ships() -> None:
    """If this fails: python -m aeic_tools.comparison makes the pictures again."""
    about = json.loads((OUT / INDEX).read_text())
    bundle = Bundle.load(None)
    assert (about["model"], about["fingerprint"]) == (bundle.name, bundle.fingerprint)
    for picture in about["pictures"]:
        for name in ("frame", "original"):
            with Image.open(OUT / f"{picture['name']}-{name}.webp") as image:
                assert image.size == (picture["width"], picture["height"])
        assert set(picture["baselines"]) == set(CODECS)
        for codec, found in picture["baselines"].items():
            data = (OUT / found["file"]).read_bytes()
            assert len(data) == found["bytes"] <= picture["bytes"]
            with Image.open(io.BytesIO(data)) as image:
                assert (image.format, image.size) == (codec.upper(), (found["width"], found["height"]))
    assert sum(path.stat().st_size for path in OUT.iterdir()) < 600_000


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_gets_its_best_size_and_quality(codec: str) -> None:
    with Image.open(EXAMPLES / "owl.jpg") as opened:
        image = opened.convert("RGB").resize((192, 128))
    photograph = np.asarray(image)
    found = best_file(photograph, codec, 1500)
    assert len(found.data) <= 1500
    # A file that fits at half the bytes is never better, and none fits into nothing.
    assert best_file(photograph, codec, 900).psnr <= found.psnr
    with pytest.raises(ValueError, match="no file"):
        best_file(photograph, codec, 20)
