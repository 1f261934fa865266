"""Frames for the measurements of a fleet: of one size and different contents, so that no two share a decode."""

from __future__ import annotations

import hashlib
from uuid import uuid4

import numpy as np

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from cloud_decoder.store.records import NewFrame


def make_frames(bundle: Bundle, count: int, *, width: int = 512, height: int = 384, spread: float = 3.0) -> list[bytes]:
    """Frames of random latents with the standard deviation ``spread``."""
    codec, chance = LatentCodec(bundle, 1), np.random.default_rng(0)
    shape = (bundle.channels, *Frame(width, height, 0, bundle.fingerprint, b"").latent_size)
    return [codec.encode(chance.normal(0, spread, shape).astype(np.float32), 0, width, height) for _ in range(count)]


def stored(data: bytes) -> NewFrame:
    """The record that ingest would store for the frame, under a new id."""
    frame = Frame.parse(data)
    digest = hashlib.sha256(data).hexdigest()
    return NewFrame("", uuid4(), "box", 1, 0, frame.width, frame.height, frame.rate, frame.fingerprint, digest, data)
