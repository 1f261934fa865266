"""The least payload of a size: no picture has less, and frames that claim a large picture with a few bytes do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aeic import rans
from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec, least_payload_bytes
from aeic.pixels import pad_picture, to_tensor
from aeic.quantise import hyper_size


def _frame(bundle: Bundle, width: int, height: int, rate: int = 0) -> Frame:
    return Frame(width, height, rate, bundle.fingerprint, b"")


@pytest.mark.parametrize("check", [1, 2, 255, 4096, 1 << 20, (1 << 24) - 1])
def test_the_cheapest_symbols_take_as_much(tiny_bundle: Path, check: int) -> None:
    """z of the most probable symbols and y without any: the shortest payload that a frame of that size can have."""
    for bundle in (Bundle.load(tiny_bundle), Bundle.load()):
        for rate, rows in enumerate(bundle.tables.z):
            modes = np.array([rows.offsets[i] + int(rows.freqs[rows.row(i)].argmax()) for i in range(len(rows))])
            for side in (16, 512, 1024, 2048, 4096):
                frame = _frame(bundle, side, side, rate)
                height, width = hyper_size(*frame.latent_size)
                ids = np.repeat(np.arange(len(rows)), height * width)
                payload = rans.encode([(modes[ids], ids, rows)], check)
                assert least_payload_bytes(bundle, frame) <= len(payload)
                if side == 4096:
                    assert least_payload_bytes(bundle, frame) > 0.8 * len(payload)


def test_flat_pictures_are_not_refused() -> None:
    bundle = Bundle.load()
    codec = LatentCodec(bundle, 1)
    for level, (width, height) in ((0, (16, 16)), (255, (1024, 768)), (128, (640, 1024))):
        image = to_tensor(pad_picture(np.full((height, width, 3), level, np.uint8)))
        (y,) = bundle.session("analysis", 1).run(None, {"image": image})
        for rate in range(len(bundle.rates)):
            data = codec.encode(y[0], rate, width, height)
            assert least_payload_bytes(bundle, Frame.parse(data)) <= len(Frame.parse(data).payload)


def test_what_a_large_picture_needs() -> None:
    bundle = Bundle.load()
    assert least_payload_bytes(bundle, _frame(bundle, 8192, 8192)) > 1000
    assert least_payload_bytes(bundle, _frame(bundle, 256, 256)) == 1
