"""Pillow and .aeic: the header in open, the decoding in load, the encoder in save; with the bundle that ships."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import aeic_tools.pillow_plugin as plugin
from aeic.bitstream import HEADER_BYTES, MAX_HEADER_BYTES, Frame
from aeic_tools.comparison import psnr
from cloud_decoder.inference.decoder import Decoder
from edge_encoder.encoding.encoder import Encoder
from tests.support.roots import ROOT

BUNDLE = ROOT / "models" / "aeic-se-nano"


@pytest.fixture
def frame(tiny_bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "owl.aeic"
    path.write_bytes(Encoder.from_bundle(tiny_bundle).encode((ROOT / "examples" / "owl.jpg").read_bytes()).data)
    return path


def decoded_with(image: Image.Image, bundle: Path) -> None:
    """Name the bundle that decodes ``image``; only images of this plugin have the attribute."""
    image.bundle = bundle  # type: ignore[attr-defined]  # see the docstring


@pytest.mark.skipif(not (BUNDLE / "bundle.json").exists(), reason="no model is shipped")
def test_there_and_back_with_the_shipped_model(tmp_path: Path) -> None:
    path = tmp_path / "coffee.aeic"
    with Image.open(ROOT / "examples" / "coffee.jpg") as original:
        original.save(path, bundle=BUNDLE, rate=2)
        before = np.asarray(original)
    assert path.stat().st_size < 4000 and Frame.parse(path.read_bytes()).rate == 2
    with Image.open(path) as image:
        decoded_with(image, BUNDLE)
        after = np.asarray(image)
    assert image.info["bpp"] < 0.1 and psnr(before, after) > 18
    assert (after == Decoder.from_bundle(BUNDLE).decode([path.read_bytes()])[0]).all()


def test_open_reads_the_header_only(frame: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("nothing may be decoded yet")

    monkeypatch.setattr(plugin, "_decoder", never)

    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            self.taken = max(self.taken, self.tell())
            return found

    file = Counting(frame.read_bytes())
    image = Image.open(file, formats=["AEIC"])  # other plugins that are registered here may read all of it to refuse it
    assert (image.size, image.mode, image.format, image.info["rate"]) == ((768, 512), "RGB", "AEIC", 0)
    assert image.format is not None and Image.MIME[image.format] == "image/x-aeic"
    assert file.taken <= 16 < len(file.getvalue())  # Pillow itself looks at sixteen
    with pytest.raises(AssertionError):
        image.load()


def test_an_image_like_any_other(frame: Path, tiny_bundle: Path) -> None:
    with Image.open(frame) as image:
        decoded_with(image, tiny_bundle)
        small = image.resize((96, 64))
        assert small.size == (96, 64) and image.load() is not None  # a second load does nothing
        assert np.asarray(image).shape == (512, 768, 3)
    image = Image.open(io.BytesIO(frame.read_bytes()))
    decoded_with(image, tiny_bundle)
    image.thumbnail((100, 100))
    assert image.size == (100, 67)


def test_modes_and_limits_of_saving(tiny_bundle: Path, tmp_path: Path) -> None:
    for mode, size in (("L", (40, 30)), ("RGBA", (17, 100)), ("P", (64, 64)), ("RGB", (16, 16))):
        out = io.BytesIO()
        Image.new(mode, size).save(out, "AEIC", bundle=tiny_bundle)
        assert (Frame.parse(out.getvalue()).width, Frame.parse(out.getvalue()).height) == size
    path = tmp_path / "clear.aeic"
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(path, bundle=tiny_bundle)  # transparent is white, not black
    with Image.open(path) as image:
        decoded_with(image, tiny_bundle)
        assert np.asarray(image).mean() > 150  # the tiny bundle is coarse
    refused: list[tuple[tuple[int, int], dict[str, Any]]] = [
        ((8, 8), {}),
        ((64, 64), {"rate": 99}),
        ((64, 64), {"max_bytes": 5}),
    ]
    for size, options in refused:
        with pytest.raises(OSError, match="cannot write"):
            Image.new("RGB", size).save(tmp_path / "no.aeic", bundle=tiny_bundle, **options)


def test_any_mode_is_saved_as_the_command_line_would(tiny_bundle: Path, tmp_path: Path) -> None:
    """16-bit grey used to come out white, and a turned photograph on its side."""
    pixels = np.linspace(0, 255, 48 * 80).reshape(48, 80).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(pixels.astype(np.uint16) * 257)
    pictures: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("deep.png", deep, {}),
        ("turned.jpg", Image.fromarray(pixels), {"exif": turned}),
    ]
    for name, image, more in pictures:
        image.save(tmp_path / name, **more)
        expected = Encoder.from_bundle(tiny_bundle).encode((tmp_path / name).read_bytes()).data
        with Image.open(tmp_path / name) as opened:
            opened.save(tmp_path / "saved.aeic", bundle=tiny_bundle)
            assert opened.size == (80, 48), "what is saved stays as it is"
        assert (tmp_path / "saved.aeic").read_bytes() == expected, name


def test_hostile_files(frame: Path, tiny_bundle: Path) -> None:
    data = frame.read_bytes()
    for bad in (b"", data[:1], data[:HEADER_BYTES], b"\xae" + bytes(20), b"\xae" * 30):
        with pytest.raises(Image.UnidentifiedImageError):
            Image.open(io.BytesIO(bad))
    for bad in (data[:-3], data[: HEADER_BYTES + 1], data[:-1] + bytes([data[-1] ^ 1]), data + bytes(2 << 20)):
        image = Image.open(io.BytesIO(bad))
        decoded_with(image, tiny_bundle)
        with pytest.raises(OSError, match="cannot decode"):
            image.load()


def test_a_frame_with_colour_statistics(tiny_bundle: Path, tmp_path: Path) -> None:
    rgb = np.asarray(Image.open(ROOT / "examples" / "owl.jpg"))
    data = Encoder.from_bundle(tiny_bundle).encode(rgb, colour_fix="always").data
    with Image.open(io.BytesIO(data)) as image:
        decoded_with(image, tiny_bundle)
        after = np.asarray(image)
    assert (after == Decoder.from_bundle(tiny_bundle).decode([data])[0]).all()
    assert np.abs(after.mean((0, 1)) - rgb.mean((0, 1))).max() < 5
    for short in (data[:MAX_HEADER_BYTES], data[: HEADER_BYTES + 2]):
        with pytest.raises(Image.UnidentifiedImageError):
            Image.open(io.BytesIO(short))


def test_importing_it_loads_no_model_and_no_runtime() -> None:
    heavy = ("onnxruntime", "torch", "sqlalchemy")
    code = f"import sys, aeic_tools.pillow_plugin; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
