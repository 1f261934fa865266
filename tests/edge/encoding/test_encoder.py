"""Encoder and analysis: the Python API, the strips of large pictures, the provider that is really used."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest

from aeic.bitstream import HEADER_BYTES, MAX_HEADER_BYTES, Frame
from aeic.bundle import Bundle
from aeic.colour_statistics import ColourStatistics
from aeic.errors import BundleError, InputError, RateError, TooLarge
from aeic.latent_codec import LatentCodec
from aeic.pixels import load_picture
from edge_encoder.encoding import execution_provider
from edge_encoder.encoding.analysis import Analysis, spans
from edge_encoder.encoding.encoder import Encoder
from edge_encoder.encoding.scaling import PRESETS, resized
from tests.support.models.tiny_bundle import write_tiny_bundle
from tests.support.pictures import picture


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Encoder:
    return Encoder.from_bundle(tiny_bundle, threads=1)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_file_and_array_give_the_same_frame(encoder: Encoder, tiny_bundle: Path) -> None:
    data = picture(130, 90, form="PNG")
    one, two = encoder.encode(data), encoder.encode(load_picture(data))
    assert one.data == two.data
    assert (one.width, one.height, one.rate) == (130, 90, encoder.bundle.default_rate)
    assert one.bpp == 8 * len(one.data) / (130 * 90)
    latents = LatentCodec(Bundle.load(tiny_bundle), 1).decode(one.data)
    assert latents.y_hat.shape[1:] == (4, 6)
    assert set(one.timings) == {"read", "analyse", "entropy"}


def test_target_bytes_is_a_wish_and_max_bytes_a_limit(encoder: Encoder) -> None:
    rgb = noise(128, 192)
    low, high = (encoder.encode(rgb, rate=rate).data for rate in (0, 1))
    assert encoder.encode(rgb, target_bytes=len(high)).data == high
    assert encoder.encode(rgb, target_bytes=len(high) - 1).data == low
    assert encoder.encode(rgb, target_bytes=len(low)).data == low
    least = encoder.encode(rgb, target_bytes=1)
    assert len(least.data) < len(low)
    assert encoder.encode(rgb, target_bytes=1, max_bytes=len(least.data)).data == least.data
    with pytest.raises(RateError, match="allow more bytes"):
        encoder.encode(rgb, target_bytes=1, max_bytes=len(least.data) - 1)


def test_a_picture_that_fits_at_no_rate_point_is_scaled_down(encoder: Encoder) -> None:
    rgb = noise(384, 512)
    low = encoder.encode(rgb, rate=0)
    for limit in (len(low.data) - 1, len(low.data) // 4, len(low.data) // 12):
        made = encoder.encode(rgb, max_bytes=limit)
        assert 0.3 * limit < len(made.data) <= limit
        assert Frame.parse(made.data).info.bytes == len(made.data)
        assert made.width < 512 and abs(made.width / made.height - 512 / 384) < 0.1
        assert (made.original_width, made.original_height) == (512, 384)
    assert encoder.encode(rgb, max_bytes=len(low.data) // 4, rate=0).rate == 0
    assert (low.width, low.height) == (low.original_width, low.original_height) == (512, 384)


def test_a_long_side_is_scaled_down_and_a_short_one_left_alone(encoder: Encoder) -> None:
    made = encoder.encode(noise(300, 400), max_side=128)
    assert (made.width, made.height, made.original_width, made.original_height) == (128, 96, 400, 300)
    assert encoder.encode(noise(300, 400), max_side=400).data == encoder.encode(noise(300, 400)).data
    thin = encoder.encode(noise(16, 512), max_side=64)  # no side goes under 16 pixels
    assert (thin.width, thin.height) == (512, 16)


def test_colour_statistics_are_those_of_the_coded_picture_and_change_nothing_else(encoder: Encoder) -> None:
    rgb = noise(300, 400)
    plain, coloured = encoder.encode(rgb), encoder.encode(rgb, colour_fix="always")
    assert Frame.parse(coloured.data).colour == ColourStatistics.of(rgb)
    assert abs(len(coloured.data) - len(plain.data) - 12) <= 4, "the rest differs in the check value only"
    assert encoder.encode(rgb, colour_fix="never").data == plain.data and Frame.parse(plain.data).colour is None
    small = encoder.encode(rgb, max_side=128, colour_fix="always")
    assert Frame.parse(small.data).colour == ColourStatistics.of(resized(rgb, (128, 96)))


def test_auto_adds_statistics_above_the_size_of_the_authors(
    encoder: Encoder, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for height, width, version in ((768, 768, 1), (768, 784, 2), (512, 768, 1)):
        rgb = noise(height, width)
        assert Frame.parse(encoder.encode(rgb, colour_fix="auto").data).version == version
        # the original's size counts, not the coded one
        scaled = encoder.encode(rgb, colour_fix="auto", max_side=64)
        assert (Frame.parse(scaled.data).version, scaled.width) == (version, 64)
    monkeypatch.setattr(encoder, "colour_fix", "always")
    assert Frame.parse(encoder.encode(noise(32, 32)).data).version == 2
    assert Frame.parse(encoder.encode(noise(32, 32), colour_fix="never").data).version == 1
    for wrong in ("Auto", "", True):
        with pytest.raises(ValueError, match="choose one of never, auto, always"):
            encoder.encode(noise(32, 32), colour_fix=wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_statistics_count_against_the_limit(encoder: Encoder) -> None:
    rgb = noise(384, 512)
    bytes_of_low = len(encoder.encode(rgb, rate=0).data)
    for most in (bytes_of_low + 6, bytes_of_low // 4, bytes_of_low // 12):
        made = encoder.encode(rgb, max_bytes=most, colour_fix="always")
        assert MAX_HEADER_BYTES < len(made.data) <= most
        frame = Frame.parse(made.data)
        assert frame.colour == ColourStatistics.of(resized(rgb, (made.width, made.height)))
        assert encoder.encode(rgb, target_bytes=most, colour_fix="always").data == made.data
    with pytest.raises(RateError, match="max_bytes=21"):
        encoder.encode(rgb, colour_fix="always", max_bytes=21)


def test_a_frame_over_the_formats_limit_is_not_made(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = noise(128, 192)
    low, high = (encoder.encode(rgb, rate=rate).data for rate in (0, 1))
    monkeypatch.setattr("aeic.latent_codec.MAX_PAYLOAD_BYTES", len(high) - HEADER_BYTES - 1)
    assert encoder.encode(rgb, target_bytes=len(high)).data == low
    with pytest.raises(TooLarge, match="lower rate point"):
        encoder.encode(rgb, rate=1)
    monkeypatch.setattr("aeic.latent_codec.MAX_PAYLOAD_BYTES", 1)
    with pytest.raises(TooLarge):
        encoder.encode(rgb, target_bytes=len(high))


def test_presets_hold_for_pictures_of_any_size_with_the_model_that_ships() -> None:
    from tests.support.pictures import picture as smooth

    shipped = Encoder.from_bundle(threads=1)
    for width, height in ((2400, 1800), (768, 512), (320, 1600), (160, 120)):
        rgb = load_picture(smooth(width, height, quality=60))
        grain = np.random.default_rng(3).integers(-25, 25, rgb.shape)
        rgb = np.clip(rgb + grain, 0, 255).astype(np.uint8)
        for size in PRESETS.values():
            made = shipped.encode(rgb, target_bytes=size.target_bytes, max_side=size.max_side)
            assert len(made.data) <= size.target_bytes
            assert max(made.width, made.height) <= size.max_side


def test_what_cannot_be_encoded(encoder: Encoder) -> None:
    for bad in (noise(64, 64).astype(np.float32), noise(64, 64)[..., 0], noise(8, 64), noise(9000, 16)):
        with pytest.raises(InputError):
            encoder.encode(cast(Any, bad))
    for nothing in ("owl.jpg", Path("owl.jpg"), None):
        with pytest.raises(TypeError, match="read_bytes"):
            encoder.encode(cast(Any, nothing))
    with pytest.raises(RateError, match="r1"):
        encoder.encode(noise(64, 64), rate=7)
    for max_bytes, target_bytes, max_side in ((-1, None, None), (None, 0, None), (None, None, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            encoder.encode(noise(64, 64), None, max_bytes, target_bytes, max_side)
    with pytest.raises(RateError, match="max_bytes=12"):  # the header alone has nine
        encoder.encode(noise(64, 64), max_bytes=12)
    with pytest.raises(TooLarge):
        Encoder(encoder.bundle, encoder.analysis, 5000).encode(noise(100, 100))


@pytest.mark.parametrize(("length", "side"), [(640, 128), (2176, 1192), (3840, 1192), (64, 64), (8192, 10)])
def test_spans_cover_everything_once(length: int, side: int) -> None:
    parts = list(spans(length, side, 128))
    assert parts[0][0] == 0 and parts[-1][1] == length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    for begin, end, first, last in parts:
        assert 0 <= first <= max(0, begin - 128) and begin < end and min(length, end + 128) <= last <= length
        assert end - begin <= max(64, side)
        assert not any(edge % 64 for edge in (begin, end, first, last))
    assert len({last - first for _, _, first, last in parts}) == 1


def test_tiles_change_nothing_where_the_margin_covers_the_reach(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    rgb = noise(500, 700)
    whole = Analysis(bundle, threads=1)(rgb)
    cut = Analysis(bundle, threads=1, whole_pixels=0, tile_pixels=320 * 320, margin=64)(rgb)
    assert whole.shape == cut.shape == (bundle.channels, 16, 22)
    np.testing.assert_allclose(whole, cut, atol=1e-5)


class Accelerated:
    """A session of the CPU that says it is one of CUDA, as far as a machine without a GPU can try that path."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """ONNX Runtime as if it had CUDA; returns the graphs that were opened for it."""
    plain = execution_provider._session
    opened: list[str] = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(execution_provider, "_refuse_two_runtimes", lambda: None)

    def session(path: Path, providers: list[Any], threads: int) -> Any:
        if providers == ["CPUExecutionProvider"]:
            return plain(path, providers, threads)
        assert providers[0][0] == "CUDAExecutionProvider" and providers[0][1]["use_tf32"] == "0"
        opened.append(path.name)
        return Accelerated(plain(path, ["CPUExecutionProvider"], threads))

    monkeypatch.setattr(execution_provider, "_session", session)
    return opened


def test_a_gpu_runs_the_float16_analysis_where_it_agrees_with_the_cpu(
    tiny_bundle: Path, tmp_path: Path, cuda: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    from aeic_train.export.gpu_graphs import add_gpu_graphs

    bundle = add_gpu_graphs(tiny_bundle, tmp_path / "gpu")
    assert bundle.fingerprint == Bundle.load(tiny_bundle).fingerprint and bundle.has("analysis_half.onnx")
    analysis = Analysis(bundle, provider="cuda", threads=1)
    assert (cuda, analysis.provider) == (["analysis_half.onnx"], "CUDAExecutionProvider")
    taken: Any = analysis._graph._session.get_inputs()[0]
    assert taken.type == "tensor(uint8)"
    rgb = noise(128, 192)
    whole = Analysis(bundle, provider="cpu", threads=1)(rgb)
    half = analysis(rgb)
    assert half.dtype == np.float32 and 0 < np.abs(half - whole).max() < 0.02 * np.abs(whole).max()

    other = write_tiny_bundle(tmp_path / "other", seed=3)  # a half graph of another model: its answer is wrong
    (bundle.path / "analysis_half.onnx").write_bytes((other / "analysis.onnx").read_bytes())
    assert Analysis(bundle, provider="auto", threads=1).provider == "CUDAExecutionProvider"
    assert cuda[1:] == ["analysis_half.onnx", "analysis.onnx"] and "float16 analysis is not used" in caplog.text


def test_a_gpu_whose_answer_is_wrong_is_not_used(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, cuda: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    right = execution_provider.run_bound

    def wrong(session: Any, image: Any, options: Any = None) -> Any:
        return right(session, image, options) * (1.1 if isinstance(session, Accelerated) else 1.0)

    monkeypatch.setattr(execution_provider, "run_bound", wrong)
    bundle = Bundle.load(tiny_bundle)
    assert Analysis(bundle, provider="auto", threads=1).provider == "CPUExecutionProvider"
    assert "known picture" in caplog.text
    with pytest.raises(BundleError, match="known picture"):
        Analysis(bundle, provider="cuda", threads=1)


def test_the_provider_is_read_back(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    assert Analysis(bundle, provider="cpu").provider == "CPUExecutionProvider"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert Analysis(bundle, provider="auto").provider == "CPUExecutionProvider"
        with pytest.raises(BundleError, match="AEIC_EDGE_PROVIDER=cpu"):
            Analysis(bundle, provider="cuda")
