"""Frames in packets: every order, losses, duplicates, damage, and what no packet is."""

from __future__ import annotations

import binascii
import random
import zlib

import pytest

from aeic.errors import Damaged, NotABitstream, TooLarge
from aeic.packets import LEAST_SIZE, MAX_FRAME_BYTES, OVERHEAD_BYTES, Joiner, Packet, split

RNG = random.Random(7)
FRAME = b"\xae" + RNG.randbytes(999)


def joined(packets: list[bytes], joiner: Joiner | None = None) -> list[bytes]:
    joiner = joiner or Joiner()
    return [frame for packet in packets if (frame := joiner.add(packet)) is not None]


def test_the_packet_is_that_of_the_document() -> None:
    assert binascii.crc_hqx(b"123456789", 0xFFFF) == 0x29B1  # CRC-16/IBM-3740
    (packet,) = split(b"\xaehello", 40)
    crc = zlib.crc32(b"\xaehello").to_bytes(4, "little")
    start = b"\xad" + crc + b"\x06\x00" + b"\x00\x00" + b"\xaehello"
    assert packet == start + binascii.crc_hqx(start, 0xFFFF).to_bytes(2, "little")
    assert len(packet) - 6 == OVERHEAD_BYTES == 11


@pytest.mark.parametrize("size", [LEAST_SIZE, 50, 222, 255, 340, 2000])
@pytest.mark.parametrize("pad", [False, True])
def test_packets_join_in_any_order_and_with_duplicates(size: int, pad: bool) -> None:
    packets = split(FRAME, size, pad=pad)
    assert len(packets) == -(-len(FRAME) // (size - OVERHEAD_BYTES))
    assert {len(packet) for packet in packets[:-1]} <= {size} and len(packets[-1]) <= size
    assert not pad or len(packets[-1]) == size
    shuffled = packets * 2
    random.Random(size).shuffle(shuffled)
    assert joined(shuffled) == [FRAME]


def test_what_is_missing_is_named_and_sent_again_in_another_size() -> None:
    joiner, packets = Joiner(), split(FRAME, 222)
    assert joined([packets[0], packets[2], packets[3]], joiner) == []
    crc = zlib.crc32(FRAME)
    assert joiner.missing() == {crc: [(211, 422), (844, 1000)]}
    again = [part for begin, end in joiner.missing()[crc] for part in split(FRAME, 50, offset=begin, end=end)]
    assert joined(again, joiner) == [FRAME] and joiner.missing() == {}


def test_damage_is_left_out() -> None:
    packets, joiner = split(FRAME, 100), Joiner()
    for number, packet in enumerate(packets):
        for bit in range(0, 8 * len(packet), 37):
            changed = bytearray(packet)
            changed[bit // 8] ^= 1 << bit % 8
            assert joiner.add(bytes(changed)) is None
        assert joiner.damaged == sum(-(-8 * len(one) // 37) for one in packets[: number + 1])
    assert joiner.missing() == {}
    assert joined(packets, joiner) == [FRAME]


def test_parts_that_do_not_add_up_are_discarded() -> None:
    joiner, crc = Joiner(), zlib.crc32(FRAME)
    assert joiner.add(Packet(crc, len(FRAME), 0, bytes(len(FRAME))).to_bytes()) is None
    assert joiner.damaged == 1 and joiner.missing() == {}
    assert joined(split(FRAME, 222), joiner) == [FRAME]


def test_frames_are_told_apart_and_their_number_is_bounded() -> None:
    frames = [b"\xae" + RNG.randbytes(400) for _ in range(10)]
    mixed = [packet for frame in frames for packet in split(frame, 100)]
    random.Random(1).shuffle(mixed)
    assert sorted(joined(mixed)) == sorted(frames)
    joiner = Joiner(most=4)
    for frame in frames:
        joiner.add(split(frame, 100)[0])
    assert len(joiner.missing()) == 4


def test_what_is_no_packet() -> None:
    for other in (b"", b"\xae" + bytes(40), b"AT+OK"):
        with pytest.raises(NotABitstream):
            Packet.parse(other)
    for bad in (b"\xad", b"\xad" * 12, Packet(1, 10, 10, b"x").to_bytes(), Packet(1, 0, 0, b"x").to_bytes()):
        with pytest.raises(Damaged):
            Packet.parse(bad)
    rng, joiner = random.Random(3), Joiner()
    for _ in range(2000):
        assert joiner.add(b"\xad" + rng.randbytes(rng.randrange(60))) is None
    with pytest.raises(ValueError, match="12 bytes or more"):
        split(FRAME, LEAST_SIZE - 1)
    with pytest.raises(TooLarge, match="max_bytes"):
        split(bytes(MAX_FRAME_BYTES + 1), 222)
    with pytest.raises(NotABitstream):
        split(b"", 222)
