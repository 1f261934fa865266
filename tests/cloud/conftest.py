"""A decoder that needs no network: the tiny bundle, and generators that do as they are told."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import pytest

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from cloud_decoder.decoder import Decoder
from cloud_decoder.onnx_generator import OnnxGenerator
from cloud_decoder.store import NewFrame, Store

MakeFrame = Callable[..., bytes]


class FakeGenerator:
    """Runs the tiny bundle's synthesis, remembers its batches, and fails or waits as a test wants."""

    def __init__(self, bundle: Bundle) -> None:
        self._inner = OnnxGenerator(bundle, 1)
        self.batches: list[tuple[int, ...]] = []
        self.most: int | None = None  # more than this at once is out of memory
        self.poison: Callable[[np.ndarray], bool] | None = None
        self.gate = threading.Event()  # the device works only while it is set
        self.gate.set()
        self.seconds = 0.0
        self.entered = 0

    def __call__(self, y_hat: np.ndarray) -> np.ndarray:
        self.entered += 1
        assert self.gate.wait(20)
        time.sleep(self.seconds)
        self.batches.append(y_hat.shape)
        if self.most is not None and len(y_hat) > self.most:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 7")
        if self.poison is not None and any(self.poison(one) for one in y_hat):
            raise ZeroDivisionError("a bug that only this frame meets")
        return self._inner(y_hat)


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.load(tiny_bundle)


@pytest.fixture(scope="session")
def make_frame(bundle: Bundle) -> MakeFrame:
    """Whole frames of random latents, different for each seed."""
    codec = LatentCodec(bundle, 1)

    def make(seed: int = 0, width: int = 128, height: int = 96, rate: int = 0) -> bytes:
        size = Frame(width, height, rate, bundle.fingerprint, b"").latent_size
        y = np.random.default_rng(seed).normal(0, 20, (bundle.channels, *size)).astype(np.float32)
        return codec.encode(y, rate, width, height)

    return make


@pytest.fixture
def generator(bundle: Bundle) -> FakeGenerator:
    return FakeGenerator(bundle)


@pytest.fixture
def decoder(bundle: Bundle, generator: FakeGenerator) -> Decoder:
    return Decoder(bundle, generator, threads=1, max_batch=4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'store.db'}")
    yield opened
    opened.close()


def new_frame(data: bytes, id: UUID | None = None, **changed: object) -> NewFrame:
    """What ingest would store for ``data``."""
    frame = Frame.parse(data)
    values: dict[str, object] = {
        "tenant": "",
        "id": id or uuid4(),
        "source": "box-1",
        "captured_ms": int(time.time() * 1000),
        "priority": 0,
        "width": frame.width,
        "height": frame.height,
        "rate": frame.rate,
        "fingerprint": frame.fingerprint,
        "digest": hashlib.sha256(data).hexdigest(),
        "bitstream": data,
    }
    return NewFrame(**(values | changed))  # type: ignore[arg-type]
