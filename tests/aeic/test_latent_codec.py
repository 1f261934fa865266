from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aeic import entropy_model, latent_codec, rans
from aeic.bitstream import HEADER_BYTES, Frame, header_bytes
from aeic.bundle import Bundle
from aeic.colour_statistics import ColourStatistics
from aeic.entropy_model import EntropyModel
from aeic.errors import BitstreamError, BundleError, Damaged, RateError, TooLarge, Truncated, WrongModel
from aeic.latent_codec import LatentCodec, Latents
from aeic.runtime import memory
from tests.support.models.tiny_bundle import write_tiny_bundle
from tests.support.roots import ROOT


@pytest.fixture(scope="session")
def codec(tiny_bundle: Path) -> LatentCodec:
    return LatentCodec(Bundle.load(tiny_bundle), threads=1)


def some_latents(width: int, height: int, seed: int = 0) -> NDArray[np.float32]:
    """Smooth and noisy at once, (8, h, w): something to predict and something to code."""
    rng = np.random.default_rng(seed)
    shape = (8, -(-height // 64) * 2, -(-width // 64) * 2)
    y = np.cumsum(np.cumsum(rng.normal(size=shape), axis=1), axis=2) + rng.normal(size=shape)
    return np.clip(y, -100, 100).astype(np.float32)


@settings(deadline=None, max_examples=40)
@given(st.integers(16, 700), st.integers(16, 700), st.integers(0, 1), st.integers(0, 99))
def test_round_trip(codec: LatentCodec, width: int, height: int, rate: int, seed: int) -> None:
    y = some_latents(width, height, seed)
    data = codec.encode(y, rate, width, height)
    latents = codec.decode(data)
    assert latents.y_hat.shape == y.shape and latents.y_hat.dtype == np.float32
    assert (latents.frame.width, latents.frame.height, latents.frame.rate) == (width, height, rate)
    assert len(latents.digest) == 64
    assert data == codec.encode(y, rate, width, height)


def test_what_is_coded_comes_back_to_half_a_step(codec: LatentCodec) -> None:
    """With wide enough tables the error is at most half a quantiser step, gain undone; skipped channels excepted."""
    y = np.clip(some_latents(768, 512), -30, 30)
    for rate, step in ((0, 2.0), (1, 0.5)):
        latents = codec.decode(codec.encode(y, rate, 768, 512))
        error = np.abs(latents.y_hat - y)[4:]
        assert np.quantile(error, 0.8) <= step / 2 + 1e-6


def test_a_camera_picture_leaves_the_synthesis_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """3840x2160 with the model that ships: emptying the arena costs each run of the synthesis a tenth."""
    emptied: list[object] = []
    monkeypatch.setattr(memory, "shrinking", lambda: emptied.append(None))
    model = EntropyModel(Bundle.load(ROOT / "models" / "aeic-se-nano"), threads=1)
    model.hyper_analysis(np.zeros((128, 68, 120), np.float32))
    assert not emptied
    monkeypatch.setattr(entropy_model, "_LARGE_BYTES", 2 << 20)
    model.hyper_analysis(np.zeros((128, 68, 120), np.float32))
    assert emptied


@pytest.mark.skipif(not rans.AVAILABLE, reason="constriction has no wheel here")
def test_accelerated_or_not_is_the_same(codec: LatentCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    y = some_latents(300, 200)
    found = []
    for accelerated in (True, False):
        monkeypatch.setattr(rans, "ACCELERATED", accelerated)
        data = codec.encode(y, 1, 300, 200)
        found.append((data, codec.decode(data).digest))
    assert found[0] == found[1]


def test_threads_do_not_matter(tiny_bundle: Path, codec: LatentCodec) -> None:
    y = some_latents(1000, 600)
    data = codec.encode(y, 1, 1000, 600)
    assert LatentCodec(Bundle.load(tiny_bundle), threads=2).decode(data).digest == codec.decode(data).digest


def test_skipped_elements_are_zero_on_both_sides(codec: LatentCodec) -> None:
    """The fault of the research code: y far from a mean that is skipped must not disturb what follows."""
    y = some_latents(512, 512) * np.float32(3)
    y[:2] += 50  # the tiny bundle skips most of its first channels
    latents = codec.decode(codec.encode(y, 1, 512, 512))
    assert (latents.symbols[0] == 0).mean() > 0.5


COLOUR = ColourStatistics((20000, 30000, 45000), (9000, 5000, 12000))


@pytest.mark.parametrize("colour", [None, COLOUR], ids=["version 1", "version 2"])
def test_every_truncation_and_every_bit_is_noticed(codec: LatentCodec, colour: ColourStatistics | None) -> None:
    data = codec.encode(some_latents(100, 70), 1, 100, 70, colour)
    assert codec.decode(data).frame.colour == colour
    for size in range(len(data)):
        with pytest.raises(BitstreamError) as caught:
            codec.decode(data[:size])
        assert isinstance(caught.value, Truncated) == (size <= header_bytes(data[:size]))
    for bit in range(8 * len(data)):
        if bit // 8 in (3, 5):  # high bits of the sides: huge pictures, tried by the fuzz target
            continue
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            codec.decode(bytes(flipped))


@settings(deadline=None, max_examples=200)
@given(st.binary(min_size=1, max_size=100), st.integers(16, 300), st.integers(16, 300), st.integers(0, 31))
def test_noise_is_refused(codec: LatentCodec, payload: bytes, width: int, height: int, rate: int) -> None:
    data = Frame(width, height, rate, codec.bundle.fingerprint, payload).to_bytes()
    with pytest.raises(BitstreamError):
        codec.decode(data)


def test_another_model_is_refused_by_name(codec: LatentCodec, tmp_path: Path) -> None:
    other = LatentCodec(Bundle.load(write_tiny_bundle(tmp_path / "other", seed=1)), threads=1)
    data = other.encode(some_latents(64, 64), 0, 64, 64)
    with pytest.raises(WrongModel, match=f"bundle {other.bundle.fingerprint}, this is {codec.bundle.fingerprint}"):
        codec.decode(data)
    posing = data[:6] + bytes.fromhex(codec.bundle.fingerprint) + data[9:]
    with pytest.raises(Damaged):
        codec.decode(posing)


def test_more_bytes_than_the_picture_can_need(codec: LatentCodec) -> None:
    data = Frame(16, 16, 0, codec.bundle.fingerprint, b"\x01" * 1000).to_bytes()
    with pytest.raises(Damaged, match="more bytes"):
        codec.decode(data)


def test_statistics_change_no_latent(codec: LatentCodec) -> None:
    y = some_latents(100, 70)
    plain, coloured = codec.encode(y, 1, 100, 70), codec.encode(y, 1, 100, 70, COLOUR)
    assert coloured[:9] == bytes([plain[0], plain[1] ^ 0x60]) + plain[2:9] and coloured[9:21] == COLOUR.pack()
    assert codec.decode(plain).digest == codec.decode(coloured).digest
    first, _ = codec.decode_many([coloured, plain])
    assert isinstance(first, Latents) and first.frame.colour == COLOUR


def test_no_frame_is_made_that_a_decoder_refuses(codec: LatentCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(codec.encode(some_latents(100, 70), 1, 100, 70)) - HEADER_BYTES
    monkeypatch.setattr(latent_codec, "MAX_PAYLOAD_BYTES", size)
    codec.encode(some_latents(100, 70), 1, 100, 70)
    monkeypatch.setattr(latent_codec, "MAX_PAYLOAD_BYTES", size - 1)
    with pytest.raises(TooLarge, match="lower rate point"):
        codec.encode(some_latents(100, 70), 1, 100, 70)


def test_bad_arguments(codec: LatentCodec) -> None:
    y = some_latents(64, 64)
    with pytest.raises(ValueError, match="needs float32"):
        codec.encode(y, 0, 65, 64)
    with pytest.raises(ValueError, match="needs float32"):
        codec.encode(y.astype(np.float64), 0, 64, 64)
    with pytest.raises(RateError):
        codec.encode(y, 7, 64, 64)
    with pytest.raises(TooLarge):
        codec.encode(y, 0, 9000, 64)
    with pytest.raises(BundleError, match="not finite"):
        codec.encode(y * np.nan, 0, 64, 64)


def test_one_call_entropy_graph_is_used_and_checked(codec: LatentCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """With entropy.onnx in the bundle the encoder makes one call; here a fake that answers what the passes answer."""
    y = some_latents(200, 100)
    wanted = codec.encode(y, 0, 200, 100)
    passes, calls = codec._model, []

    class OneCall(EntropyModel):
        spoil = 0

        def _run(self, name: str, **inputs: np.ndarray) -> list[np.ndarray]:
            if name != "entropy":
                return super()._run(name, **inputs)
            calls.append(sorted(inputs))
            symbols, indexes, y_hat = passes.quantise(inputs["y"][0], inputs["z_symbols"][0])
            return [symbols[None] + np.int16(self.spoil), indexes[None], y_hat[None]]

    class WithEntropy(Bundle):
        def has(self, name: str) -> bool:
            return name == "entropy.onnx" or super().has(name)

    bundle = WithEntropy(codec.bundle.path, codec.bundle.manifest, codec.bundle.tables)
    one = LatentCodec(bundle)
    one._model = OneCall(bundle, 1)
    assert one.encode(y, 0, 200, 100) == wanted and calls == [["y", "z_symbols"]]
    monkeypatch.setattr(OneCall, "spoil", 1)
    with pytest.raises(BundleError, match="codes elements that it must skip"):
        one.encode(y, 0, 200, 100)


def test_a_graph_with_another_shape_is_a_bundle_error(codec: LatentCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    run = EntropyModel._run

    def cut(self: EntropyModel, name: str, **inputs: np.ndarray) -> list[np.ndarray]:
        return [output[..., :-1] for output in run(self, name, **inputs)]

    monkeypatch.setattr(EntropyModel, "_run", cut)
    with pytest.raises(BundleError, match="export it again"):
        codec.encode(some_latents(64, 64), 0, 64, 64)


def test_a_large_picture_does_not_enlarge_the_process_for_good() -> None:
    """The sessions of the entropy model return their arenas' memory; measured in a process of its own."""
    program = """
import sys, numpy as np, psutil
from aeic.bundle import Bundle
from aeic.entropy_model import EntropyModel
bundle = Bundle.load()
model = EntropyModel(bundle, 1)
def run(side):
    z = np.zeros((1, bundle.hyper_channels, side, side), np.int32)
    base = model.hyper_synthesis(z, 4 * side, 4 * side)
    for index in range(4):
        model.context(index, base)
run(4)
before = psutil.Process().memory_info().rss
run(32)
print((psutil.Process().memory_info().rss - before) >> 20)
"""
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 220  # 300 where each session keeps what it has used


def test_the_sessions_share_an_arena_that_returns_its_memory() -> None:
    """What the entropy coding of a picture of 41 megapixels leaves behind, measured in a process of its own."""
    program = """
import numpy as np, psutil
from aeic.bundle import Bundle
from aeic.latent_codec import Latents, LatentCodec
from aeic_service import malloc
malloc.give_large_blocks_back()
bundle = Bundle.load()
codec = LatentCodec(bundle, 1)
def run(side):
    codec.encode(np.zeros((bundle.channels, side, side), np.float32), 0, 32 * side, 32 * side)
run(4)
before = psutil.Process().memory_info().rss
run(200)
print((psutil.Process().memory_info().rss - before) >> 20)
"""
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 155  # 100; 211 where each session has an arena of its own
