from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aeic.bitstream import HEADER_BYTES, MAX_HEADER_BYTES, Frame
from aeic.colour_statistics import MAX_STD, MIN_STD, ColourStatistics
from aeic.errors import BitstreamError, Damaged, NotABitstream, TooLarge, Truncated, UnsupportedVersion

sides = st.integers(16, 8192)
FRAME = Frame(768, 512, 3, "a1b2c3", b"payload")
COLOUR = ColourStatistics((0, 0x1234, 65535), (MIN_STD, 0x2345, MAX_STD))
COLOURED = replace(FRAME, colour=COLOUR)


@given(sides, sides, st.integers(0, 31), st.binary(min_size=3, max_size=3), st.binary(min_size=1, max_size=50))
def test_round_trip(width: int, height: int, rate: int, fingerprint: bytes, payload: bytes) -> None:
    frame = Frame(width, height, rate, fingerprint.hex(), payload)
    data = frame.to_bytes()
    assert len(data) == HEADER_BYTES + len(payload)
    assert Frame.parse(data) == frame


def test_byte_map() -> None:
    assert FRAME.to_bytes().hex() == "ae23ffe23f00a1b2c3" + b"payload".hex()


def test_statistics_are_between_the_header_and_the_payload() -> None:
    data = COLOURED.to_bytes()
    assert data.hex() == "ae43ffe23f00a1b2c3" + "00003412ffffcf0045234080" + b"payload".hex()
    assert Frame.parse(data) == COLOURED and (FRAME.version, COLOURED.version) == (1, 2)
    info = COLOURED.info
    assert (info.version, info.bytes, info.payload_bytes) == (2, len(data), 7)


def test_statistics_that_are_cut_or_damaged_are_refused() -> None:
    data = COLOURED.to_bytes()
    for size in range(2, MAX_HEADER_BYTES + 1):
        with pytest.raises(Truncated):
            Frame.parse(data[:size])
    for at in (15, 17, 19):
        for std in (0, MIN_STD - 1, MAX_STD + 1, 65535):
            with pytest.raises(Damaged, match="colour statistics"):
                Frame.parse(data[:at] + std.to_bytes(2, "little") + data[at + 2 :])
    with pytest.raises(UnsupportedVersion, match="flags 1:"):
        Frame.parse(data[:5] + bytes([data[5] | 4]) + data[6:])
    with pytest.raises(Damaged, match="limit of 6"):
        Frame.parse(data, max_payload_bytes=6)
    assert Frame.parse(data, max_payload_bytes=7) == COLOURED


def test_sizes() -> None:
    frame = Frame(769, 64, 0, "000000", b"x")
    assert frame.padded_size == (64, 832) and frame.latent_size == (2, 26)
    assert frame.info.bytes == 10 and frame.info.bpp == pytest.approx(80 / (769 * 64))
    assert frame.info.as_dict()["payload_bytes"] == 1


@given(st.binary(max_size=64))
def test_any_bytes_give_a_frame_or_a_typed_error(data: bytes) -> None:
    with contextlib.suppress(BitstreamError):
        assert Frame.parse(data).to_bytes() == data


def test_errors() -> None:
    data = FRAME.to_bytes()
    with pytest.raises(NotABitstream, match="0x50"):
        Frame.parse(b"PNG is not this")
    for size in range(HEADER_BYTES + 1):
        with pytest.raises(Truncated):
            Frame.parse(data[:size])
    with pytest.raises(UnsupportedVersion, match="version 3"):
        Frame.parse(bytes([0xAE, 3 << 5]) + data[2:])
    with pytest.raises(UnsupportedVersion, match="flags 32"):
        Frame.parse(data[:5] + bytes([data[5] | 0x80]) + data[6:])
    with pytest.raises(Damaged, match="1x1"):
        Frame.parse(data[:2] + bytes(4) + data[6:])
    with pytest.raises(Damaged, match="limit of 3"):
        Frame.parse(data, max_payload_bytes=3)
    with pytest.raises(BitstreamError, match="768x512"):
        Frame.parse(data, max_pixels=768 * 512 - 1)
    assert Frame.parse(data, max_pixels=768 * 512) == FRAME


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(TooLarge):
        Frame(8193, 16, 0, "000000", b"")
    for width, height, rate, fingerprint in [(15, 16, 0, "000000"), (16, 16, 32, "000000"), (16, 16, 0, "0000")]:
        with pytest.raises(ValueError, match=r"under|does not fit"):
            Frame(width, height, rate, fingerprint, b"")
