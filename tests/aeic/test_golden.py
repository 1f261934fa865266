"""The golden streams: a changed byte means that frames already sent can no longer be read."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import numpy as np
import pytest

from aeic.bitstream import VERSION
from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from tests.aeic import second_decoder
from tests.aeic.make_golden import GOLDEN

LISTING = json.loads((GOLDEN / "golden.json").read_text())
streams = pytest.mark.parametrize("stream", LISTING["streams"], ids=lambda stream: str(stream["name"]))


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    return LatentCodec(Bundle.load(GOLDEN / "bundle"), threads=1)


def test_version() -> None:
    assert LISTING["version"] == VERSION, "a new version needs new streams: python -m tests.aeic.make_golden"


@streams
def test_decodes_to_the_same_latents(codec: LatentCodec, stream: dict[str, Any]) -> None:
    data = (GOLDEN / f"{stream['name']}.aeic").read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (stream["bytes"], stream["sha256"])
    wanted = np.load(GOLDEN / f"{stream['name']}.npz")
    found = codec.decode(data)
    assert found.digest == stream["latents"]
    assert (found.symbols == wanted["symbols"]).all()
    gains = codec.bundle.tables.gains[stream["rate"]][:, None, None]
    assert (found.y_hat * gains == wanted["y_hat"]).all()


@streams
def test_encodes_to_the_same_bytes(codec: LatentCodec, stream: dict[str, Any]) -> None:
    y = np.load(GOLDEN / f"{stream['name']}.npz")["y"]
    data = codec.encode(y, stream["rate"], stream["width"], stream["height"])
    assert data == (GOLDEN / f"{stream['name']}.aeic").read_bytes()


def test_the_example_in_the_document() -> None:
    text = (GOLDEN.parents[1] / "docs" / "bitstream.md").read_text()
    example = text.split("```")[-2]
    digits = "".join(re.findall(r"^((?:[0-9a-f]{2} ?)+)", example, re.MULTILINE)).replace(" ", "")
    assert bytes.fromhex(digits) == (GOLDEN / "smallest.aeic").read_bytes()


@streams
def test_the_document_is_enough(stream: dict[str, Any]) -> None:
    y_hat = second_decoder.decode(GOLDEN / "bundle", (GOLDEN / f"{stream['name']}.aeic").read_bytes())
    assert hashlib.sha256(y_hat.astype("<f4").tobytes()).hexdigest() == stream["latents"]
