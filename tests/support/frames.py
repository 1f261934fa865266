"""Frames of the tiny bundle, and records of the cloud's store made of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import numpy as np

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.colour_statistics import ColourStatistics
from aeic.latent_codec import LatentCodec
from cloud_decoder.store.store import LeasedFrame, NewFrame, Store

MakeFrame = Callable[..., bytes]

NOW = 1_700_000_000.0
"""The time of tests that give the store their own."""


def frame_maker(bundle: Bundle) -> MakeFrame:
    """A function ``(seed=0, width=128, height=96, rate=0, colour=None)`` that encodes random latents to a frame."""
    codec = LatentCodec(bundle, 1)

    def make(
        seed: int = 0, width: int = 128, height: int = 96, rate: int = 0, colour: ColourStatistics | None = None
    ) -> bytes:
        size = Frame(width, height, rate, bundle.fingerprint, b"").latent_size
        y = np.random.default_rng(seed).normal(0, 20, (bundle.channels, *size)).astype(np.float32)
        return codec.encode(y, rate, width, height, colour)

    return make


def new_frame(data: bytes, id: UUID | None = None, **changed: object) -> NewFrame:
    """The record that ingest stores for the frame ``data``."""
    frame = Frame.parse(data)
    values: dict[str, object] = {
        "captured_ms": int(time.time() * 1000),
        "width": frame.width,
        "height": frame.height,
        "rate": frame.rate,
        "fingerprint": frame.fingerprint,
    }
    return stored_frame(data, id, **(values | changed))


def stored_frame(content: bytes = b"frame", id: UUID | None = None, **changed: Any) -> NewFrame:
    """A record of the store for any bytes; they need not be a frame."""
    values: dict[str, Any] = {
        "tenant": "",
        "id": id or uuid4(),
        "source": "box-1",
        "captured_ms": 1,
        "priority": 0,
        "width": 64,
        "height": 48,
        "rate": 1,
        "fingerprint": "abcdef",
        "digest": hashlib.sha256(content).hexdigest(),
        "bitstream": content,
    }
    return NewFrame(**(values | changed))


def claim(store: Store, limit: int = 10, now: float = NOW, owner: str = "w") -> list[LeasedFrame]:
    """Lease up to ``limit`` frames of the bundle of ``stored_frame`` for 60 s."""
    return store.queue.claim(owner, "abcdef", limit, now, 60, 3)
