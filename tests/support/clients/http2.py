"""Frames of HTTP/2, written by hand: what no client library would send."""

from __future__ import annotations

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, SETTINGS, CONTINUATION = 1, 4, 9
MAX_FRAME = 16384


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame (RFC 9113 section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def field(name: bytes, value: bytes) -> bytes:
    """A header that is not to be indexed (RFC 7541 section 6.2.2), without Huffman coding."""
    return b"\0" + _string(name) + _string(value)


def call(path: bytes) -> bytes:
    """The headers with which a gRPC call begins."""
    return b"".join(
        field(*one)
        for one in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )


def connect(address: str) -> socket.socket:
    """A connection to ``host:port`` after the preface."""
    host, _, port = address.rpartition(":")
    line = socket.create_connection((host, int(port)), timeout=10)
    line.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
    return line


def _string(text: bytes) -> bytes:
    length = len(text)
    if length < 127:
        return bytes([length]) + text
    head, length = bytearray([127]), length - 127
    while length >= 128:
        head.append(length % 128 | 128)
        length //= 128
    return bytes([*head, length]) + text
