"""A photograph over a serial line that loses and damages messages: `python docs/examples/lossy_serial.py [PICTURE]`.

Two processes' worth of code run in two threads, connected by a pseudo-terminal as two radios would be by their serial
ports. A message is one line of hexadecimal, at most 222 bytes long. The receiver asks for what is missing.
"""

from __future__ import annotations

import os
import random
import select
import sys
import termios
import threading
import tty
from pathlib import Path

from aeic.packets import Joiner, split
from edge_encoder.encoding.encoder import Encoder

SIZE = 222
LOST, DAMAGED = 0.2, 0.1
QUIET_SECONDS = 0.3


class Radio:
    """Messages over a file descriptor. Sending loses some of them and changes a bit in others."""

    def __init__(self, port: int, seed: int) -> None:
        self._port, self._rng, self._rest = port, random.Random(seed), b""
        self.sent = self.lost = self.damaged = 0

    def send(self, message: bytes) -> None:
        """Send a message, perhaps."""
        self.sent += 1
        if self._rng.random() < LOST:
            self.lost += 1
            return
        if self._rng.random() < DAMAGED:
            self.damaged += 1
            changed = bytearray(message)
            changed[self._rng.randrange(len(changed))] ^= 1 << self._rng.randrange(8)
            message = bytes(changed)
        os.write(self._port, message.hex().encode() + b"\n")

    def receive(self) -> bytes | None:
        """The next message, or None after a while without one."""
        while b"\n" not in self._rest:
            if not select.select([self._port], [], [], QUIET_SECONDS)[0]:
                return None
            self._rest += os.read(self._port, 4096)
        line, _, self._rest = self._rest.partition(b"\n")
        return bytes.fromhex(line.decode())


def sender(radio: Radio, frame: bytes, done: threading.Event) -> None:
    """Send the frame, then whatever is asked for: `?begin-end`."""
    for packet in split(frame, SIZE):
        radio.send(packet)
    while not done.is_set():
        asked = radio.receive()
        if asked is None or not asked.startswith(b"?"):
            if asked is None:
                radio.send(split(frame, SIZE)[0])  # the receiver may have heard nothing at all
            continue
        begin, _, end = asked[1:].partition(b"-")
        if begin.isdigit() and end.isdigit():
            for packet in split(frame, SIZE, offset=int(begin), end=int(end)):
                radio.send(packet)


def receiver(radio: Radio) -> bytes:
    """Collect packets until a frame is whole."""
    joiner = Joiner()
    while True:
        message = radio.receive()
        if message is not None:
            frame = joiner.add(message)
            if frame is not None:
                return frame
            continue
        for gaps in joiner.missing().values():
            for begin, end in gaps:
                radio.send(f"?{begin}-{end}".encode())


def main() -> int:
    """Exit code 0 when the frame arrived bit for bit."""
    picture = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "examples" / "owl.jpg")
    frame = Encoder.from_bundle(threads=1).encode(picture.read_bytes(), target_bytes=1000).data
    near, far = os.openpty()
    for port in (near, far):
        tty.setraw(port, termios.TCSANOW)
    transmitter, listener, done = Radio(near, 1), Radio(far, 2), threading.Event()
    sending = threading.Thread(target=sender, args=(transmitter, frame, done), daemon=True)
    sending.start()
    arrived = receiver(listener)
    done.set()
    sending.join(5)
    print(
        f"{picture.name}: {len(frame)} bytes in {len(split(frame, SIZE))} packets of up to {SIZE} bytes;"
        f" {transmitter.sent} sent, {transmitter.lost} lost, {transmitter.damaged} damaged;"
        f" arrived {'bit for bit' if arrived == frame else 'WRONG'}"
    )
    return 0 if arrived == frame else 1


if __name__ == "__main__":
    sys.exit(main())
