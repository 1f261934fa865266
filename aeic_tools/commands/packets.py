"""The commands split and join: frames in packets of a fixed size, as files or as lines of hexadecimal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from aeic.errors import Damaged, NotABitstream
from aeic.packets import LEAST_SIZE, Joiner
from aeic.packets import split as packets_of
from aeic_tools import files
from aeic_tools.files import PIPE, UsageError

SUFFIX = ".pkt"


def split(source: str, target: str, size: int, *, pad: bool, force: bool) -> int:
    """A frame to packets: files in the folder ``target``, or lines of hexadecimal on stdout. Returns the exit code."""
    if size < LEAST_SIZE:
        raise UsageError(f"--size {size}: a packet has {LEAST_SIZE} bytes or more")
    frame = files.read(source)
    if frame[:1] != b"\xae":
        raise NotABitstream(f"{source} is not an AEIC frame: give a .aeic file")
    packets = packets_of(frame, size, pad=pad)
    if target == PIPE:
        for packet in packets:
            print(packet.hex())
        return 0
    if Path(target).exists() and not Path(target).is_dir():
        raise UsageError(f"{target} is not a folder: give a folder to write the packets to")
    stem = "frame" if source == PIPE else Path(source).stem
    names = [str(Path(target) / f"{stem}-{number:03d}{SUFFIX}") for number in range(len(packets))]
    for name in names:
        files.refuse_overwrite(name, force)
    for name, packet in zip(names, packets, strict=True):
        files.write(name, packet, force)
    print(f"{source} -> {target}: {len(frame)} bytes in {len(packets)} packets of up to {size}", file=sys.stderr)
    return 0


def join(sources: Sequence[str], target: str, *, force: bool) -> int:
    """Packets to the frame that they hold: folders, files, or lines of hexadecimal on stdin. Returns the exit code.

    ``Damaged`` if bytes are missing, ``UsageError`` if there are packets of several frames.
    """
    files.refuse_overwrite(target, force)
    joiner = Joiner()
    frames = [frame for data in _packets(sources) if (frame := joiner.add(data)) is not None]
    if joiner.damaged:
        print(f"aeic: {joiner.damaged} damaged packets are left out", file=sys.stderr)
    if len(frames) > 1:
        raise UsageError("these packets belong to several frames: give the packets of one frame")
    if not frames:
        gaps = [f"{begin} to {end - 1}" for one in joiner.missing().values() for begin, end in one]
        raise Damaged(f"bytes are missing: {', '.join(gaps)}" if gaps else "there is no whole packet")
    files.write(target, frames[0], force)
    return 0


def _packets(sources: Sequence[str]) -> Iterator[bytes]:
    for source in sources:
        if source == PIPE:
            for line in sys.stdin.buffer:
                try:
                    yield bytes.fromhex(line.decode("ascii"))
                except ValueError:
                    yield b""  # counted as damaged
        elif Path(source).is_dir():
            for path in sorted(Path(source).glob(f"*{SUFFIX}")):
                yield files.read(str(path))
        else:
            yield files.read(source)
