"""The research code's streams: the golden one of the full-size SE, and hostile ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aeic.errors import BitstreamError, Damaged, InputError, NotABitstream, Truncated
from aeic.profiles import SE
from aeic_nets.codec import Codec
from aeic_nets.official import archive, keys, tables
from aeic_nets.official.golden_weights import GoldenTensors
from aeic_nets.official.range_coder import StreamDecoder, encode
from aeic_nets.official.weights import load_codec

GOLDEN = np.load(Path(__file__).parent / "goldens" / "golden_SE.npz")
STREAM = GOLDEN["C_bitstream"].tobytes()


@pytest.fixture(scope="module")
def codec() -> Codec:
    with torch.device("meta"):
        codec = Codec(SE)
    del codec.g_s, codec.g_a
    load_codec(codec, GoldenTensors("codec", keys.codec_keys(SE)))
    return codec.eval()


def test_the_golden_stream_with_its_indexes(codec: Codec) -> None:
    """Every symbol of flow C, every byte used, and the same latents."""
    found = archive.decode(codec, STREAM, 192, 256, GOLDEN["C_coded_idx"])
    np.testing.assert_array_equal(found.z_symbols, GOLDEN["C_z_sym"][0])
    np.testing.assert_array_equal(found.symbols, GOLDEN["C_y_sym"][0])
    np.testing.assert_allclose(found.y_hat, GOLDEN["C_y_hat"][0], atol=1e-3)
    altered = GOLDEN["C_coded_idx"].copy()
    altered[np.flatnonzero(altered > 5)[-1]] -= 1
    with pytest.raises(BitstreamError):
        archive.decode(codec, STREAM, 192, 256, altered)
    with pytest.raises(InputError, match="12288 numbers"):
        archive.decode(codec, STREAM, 192, 256, altered[:-1])


def test_files_are_checked_before_anything_is_made() -> None:
    head = (256).to_bytes(4, "big") + (192).to_bytes(4, "big") + len(STREAM).to_bytes(4, "big")
    assert archive.parse_file(head + STREAM) == (192, 256, STREAM)
    with pytest.raises(Truncated):
        archive.parse_file(head + STREAM[:-1])
    with pytest.raises(Truncated):
        archive.parse_file(head[:11])
    with pytest.raises(NotABitstream, match="--size"):
        archive.parse_file(b"\xff" * 12 + STREAM)
    with pytest.raises(Damaged):
        StreamDecoder(b"\x21" + STREAM[1:])
    with pytest.raises(Truncated):
        StreamDecoder(STREAM[:40])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-70000, 70000), max_size=24), st.lists(st.integers(-3, 3), max_size=24))
def test_any_value_comes_back_escapes_too(wild: list[int], tame: list[int]) -> None:
    table = tables.Table([0, 20000, 50000, 65000, 65536], -1)
    values = wild + tame
    indexes = [0 if i % 5 else -1 for i in range(len(values))]
    reader = StreamDecoder(encode([([table], indexes, values)]))
    assert reader.read([table], indexes) == [v if i >= 0 else 0 for i, v in zip(indexes, values, strict=True)]
    reader.finish()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80))
def test_noise_is_refused_or_read_within_bounds(noise: bytes) -> None:
    table = tables.Table([0, 20000, 50000, 65000, 65536], -1)
    try:
        reader = StreamDecoder(b"\x11" + noise)
        reader.read([table], [0] * 200)
        reader.finish()
    except BitstreamError:
        pass
