"""Originals encrypted at rest by AES-256-GCM.

    magic "AEICORI2" | key id 8 | nonce 12 | nonce 12 | bytes of meta u32 | meta, tag 16 | picture, tag 16

The description is sealed with the first nonce, so that it can be read alone; the picture with the second one, bound to
all bytes before it. Nonces are random: a key serves for 2**32 of them, which is 68 years of a picture per second. The
key id is a hash of the key, so that files under another key are recognised. Their names and sizes are not secret, and
neither is when they were written.
"""

from __future__ import annotations

import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from edge_encoder.originals.file_format import LENGTH, part

MAGIC = b"AEICORI2"
_ID, _NONCE, _TAG = 8, 12, 16
_HEAD = len(MAGIC) + _ID + 2 * _NONCE


def parse_key(text: str) -> bytes:
    """The 32 bytes of a key. ValueError, without the text, if it is not 64 hexadecimal digits."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32 or len(text) != 64:
        raise ValueError("a key has 64 hexadecimal digits: openssl rand -hex 32")
    return key


class Cipher:
    """A FileFormat under one key of 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._start = MAGIC + hashlib.sha256(b"aeic originals" + key).digest()[:_ID]

    @classmethod
    def of(cls, key: SecretStr | None) -> Cipher | None:
        """The cipher of a setting; None where it is not set."""
        return None if key is None or not key.get_secret_value() else cls(parse_key(key.get_secret_value()))

    def pack(self, meta: bytes, picture: bytes) -> list[bytes]:
        """As in FileFormat."""
        nonces = os.urandom(2 * _NONCE)
        head = self._start + nonces + LENGTH.pack(len(meta))
        head += self._aead.encrypt(nonces[:_NONCE], meta, head)
        return [head, self._aead.encrypt(nonces[_NONCE:], picture, head)]

    def meta(self, head: bytes) -> bytes:
        """As in FileFormat."""
        return self._meta(head)[0]

    def unpack(self, raw: bytes) -> tuple[bytes, bytes]:
        """As in FileFormat."""
        meta, end = self._meta(raw)
        nonce = raw[_HEAD - _NONCE : _HEAD]
        return meta, self._decrypt(nonce, raw[end:], raw[:end])

    def _meta(self, raw: bytes) -> tuple[bytes, int]:
        sealed, end = part(raw, self._start, _HEAD, _TAG)
        nonce = raw[_HEAD - 2 * _NONCE : _HEAD - _NONCE]
        return self._decrypt(nonce, sealed, raw[: _HEAD + LENGTH.size]), end

    def _decrypt(self, nonce: bytes, sealed: bytes, bound: bytes) -> bytes:
        try:
            return self._aead.decrypt(nonce, sealed, bound)
        except InvalidTag:
            raise ValueError("it was altered, or it has another key") from None
