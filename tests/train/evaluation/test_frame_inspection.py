"""The bits that are shown for each element add up to the frame, and belong to the pass that codes it."""

from __future__ import annotations

import numpy as np
import pytest

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.errors import BitstreamError
from aeic.passes import PASS_COUNT, pass_mask
from aeic.tables import gaussian_scales
from aeic_train.codecs.ours import OurCodec
from aeic_train.evaluation.frame_inspection import inspect
from tests.support.models.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundle")))


def test_the_bits_of_all_elements_are_the_frame(bundle: Bundle) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (192, 320, 3), dtype=np.uint8)
    data = OurCodec(bundle, threads=1).encode(picture, 1)
    found = inspect(bundle, data)
    # The payload adds a check value of 24 bits and the coder's state of 8 bytes at most.
    assert 0 <= 8 * len(Frame.parse(data).payload) - found.bits <= 24 + 64 + 0.01 * found.bits
    assert found.y_bits.shape == found.symbols.shape == found.scales.shape == (bundle.channels, 6, 10)
    passes = [found.bits_by_position(index) for index in range(PASS_COUNT)]
    np.testing.assert_allclose(sum(passes), found.bits_by_position())
    np.testing.assert_allclose([one.sum() for one in passes], found.bits_by_pass())
    assert sum(found.bits_by_pass()) == pytest.approx(found.y_bits.sum())
    skipped = found.scales == 0
    assert (found.y_bits[skipped] == 0).all() and (found.symbols[skipped] == 0).all()
    assert set(found.scales[~skipped]) <= set(gaussian_scales())
    assert found.z_bits.shape[0] == bundle.hyper_channels and found.z_bits.min() > 0


def test_a_surprising_symbol_costs_bits_in_its_own_pass(bundle: Bundle) -> None:
    """Each element's bits are those of its table: recomputed here from the Gaussian."""
    picture = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    found = inspect(bundle, OurCodec(bundle, threads=1).encode(picture, 0))
    for index in range(PASS_COUNT):
        mask = pass_mask(index, *found.y_bits.shape)
        rows = bundle.tables.y
        scales = found.scales[mask]
        ids = np.searchsorted(gaussian_scales(), scales[scales > 0] * (1 - 1e-9))
        assert rows.bits(found.symbols[mask][scales > 0], ids) == pytest.approx(found.bits_by_pass()[index])


def test_another_file_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BitstreamError):
        inspect(bundle, b"no frame")
