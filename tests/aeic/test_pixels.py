from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aeic.errors import InputError, TooLarge, Unreadable, UnsupportedFormat
from aeic.pixels import from_tensor, load_picture, pad_picture, picture_size, save_picture, to_tensor


def gradient(height: int = 40, width: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=2).astype(np.uint8)


def file_of(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("format", "worst"), [("PNG", 0), ("WEBP", 0), ("JPEG", 12)])
def test_the_three_formats(format: str, worst: int, tmp_path: Path) -> None:
    rgb = gradient()
    data = file_of(Image.fromarray(rgb), format, quality=97, **({"lossless": True} if format == "WEBP" else {}))
    found = load_picture(data)
    assert found.shape == rgb.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - rgb).mean() <= worst
    (tmp_path / "picture").write_bytes(data)
    assert (load_picture(tmp_path / "picture") == found).all()


@pytest.mark.parametrize(
    "data", [b"", b"hello, this is a text file\n" * 9, bytes(500), b"\xff\xd8\xff", b"RIFF1234WEBP"]
)
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(Unreadable, match="send"):
        load_picture(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.9])
def test_truncated(format: str, part: float) -> None:
    data = file_of(Image.fromarray(gradient(200, 300)), format)
    with pytest.raises(Unreadable):
        load_picture(data[: int(part * len(data))])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_head_alone_tells_the_size(format: str) -> None:
    data = file_of(Image.fromarray(gradient(600, 900)), format)
    assert picture_size(data if format == "WEBP" else data[: len(data) // 2]) == (900, 600)
    with pytest.raises(TooLarge):
        picture_size(data, max_pixels=1000)
    for other in (b"", b"text", data[:9], file_of(Image.fromarray(gradient()), "GIF"), png_claiming(9000, 20)):
        with pytest.raises(InputError) as of_head:
            picture_size(other)
        with pytest.raises(InputError) as of_all:
            load_picture(other)
        assert str(of_head.value) == str(of_all.value)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "JPEG2000"])
def test_other_formats_are_named(format: str) -> None:
    with pytest.raises(UnsupportedFormat, match="JPEG, PNG, WebP or AVIF"):
        load_picture(file_of(Image.fromarray(gradient()), format))


@pytest.mark.parametrize(("width", "height"), [(60000, 60000), (9000, 20), (20, 8193), (8192, 8193)])
def test_a_huge_claim_is_refused_before_decoding(width: int, height: int) -> None:
    with pytest.raises(TooLarge):
        load_picture(png_claiming(width, height))


def test_the_limit_on_pixels() -> None:
    data = file_of(Image.fromarray(gradient(40, 60)))
    assert load_picture(data, max_pixels=2400).shape == (40, 60, 3)
    with pytest.raises(TooLarge, match="60x40"):
        load_picture(data, max_pixels=2399)


def test_a_form_around_the_file_is_named() -> None:
    form = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n\xff\xd8\xff'
    with pytest.raises(Unreadable, match="--data-binary"):
        load_picture(form)


def test_small_pictures() -> None:
    assert load_picture(file_of(Image.fromarray(gradient(16, 16)))).shape == (16, 16, 3)
    with pytest.raises(InputError, match="15x16"):
        load_picture(file_of(Image.fromarray(gradient(16, 15))))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animated(format: str) -> None:
    frames = [Image.fromarray(np.roll(gradient(), step, axis=0)) for step in (0, 5, 9)]
    data = file_of(frames[0], format, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="animated"):
        load_picture(data)


def test_sixteen_bits() -> None:
    levels = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    found = load_picture(file_of(Image.fromarray(levels)))
    assert np.abs(found - (levels / 257.0)[:, :, None]).max() <= 0.51 and (found[..., 0] == found[..., 2]).all()


def test_cmyk() -> None:
    cmyk = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
    found = load_picture(file_of(cmyk, "JPEG", quality=95))
    assert (np.abs(found.astype(int) - [255, 0, 0]) < 12).all()


def test_grey_and_bilevel() -> None:
    grey = Image.fromarray(gradient()).convert("L")
    assert (load_picture(file_of(grey)) == np.array(grey)[:, :, None]).all()
    assert set(np.unique(load_picture(file_of(grey.convert("1"))))) == {0, 255}


def test_palette() -> None:
    palette = Image.fromarray(gradient()).quantize(16)
    assert (load_picture(file_of(palette)) == np.array(palette.convert("RGB"))).all()


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparency_lies_over_white(format: str) -> None:
    rgba = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    rgba.paste((255, 0, 0, 255), (0, 0, 20, 40))
    rgba.paste((0, 0, 0, 128), (30, 0, 40, 40))
    found = load_picture(file_of(rgba, format, **({"lossless": True} if format == "WEBP" else {})))
    assert found[5, 5].tolist() == [255, 0, 0] and found[5, 25].tolist() == [255] * 3
    assert np.abs(found[5, 35].astype(int) - 127).max() <= 1


def test_transparent_grey_palette_and_key_colour() -> None:
    clear = Image.new("LA", (20, 20), (0, 0))
    assert (load_picture(file_of(clear)) == 255).all()
    palette = Image.new("P", (20, 20), 3)
    palette.putpalette([9, 9, 9] * 4)
    assert (load_picture(file_of(palette, transparency=3)) == 255).all()
    assert (load_picture(file_of(Image.new("RGB", (20, 20), (1, 2, 3)), transparency=(1, 2, 3))) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_turn(format: str, orientation: int) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16] = (250, 0, 0)  # red in the top left corner, blue in the top right one
    upright[:16, 32:] = (0, 0, 250)
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(upright)))
    data = file_of(stored, format, exif=exif.tobytes(), quality=95)
    found = load_picture(data)
    assert found.shape == upright.shape and picture_size(data) == (48, 32)
    assert found[8, 8, 0] > 200 and found[8, 8, 2] < 60 and found[8, 40, 2] > 200 and found[8, 40, 0] < 60


def test_broken_exif_does_not_lose_the_picture() -> None:
    data = file_of(Image.fromarray(gradient()), "JPEG", exif=b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff broken")
    assert load_picture(data).shape == (40, 60, 3)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP"]), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=8)
)
def test_damaged_files_give_a_picture_or_a_typed_error(format: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(file_of(Image.fromarray(gradient()), format))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        head: tuple[int, int] | None = picture_size(bytes(data), max_pixels=1 << 20)
    except InputError:
        head = None
    try:
        rgb = load_picture(bytes(data), max_pixels=1 << 20)
    except InputError:
        return
    assert head is not None and sorted(head) == sorted(rgb.shape[:2])  # a damaged EXIF block may turn it
    assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3


def test_too_little_memory_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(MemoryError):
        load_picture(save_picture(np.zeros((32, 32, 3), np.uint8), "png"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="check the name"):
        load_picture(tmp_path / "none.jpg")


def test_tensors() -> None:
    rgb = gradient()
    image = to_tensor(rgb)
    assert image.shape == (1, 3, 40, 60) and image.dtype == np.float32
    assert image.min() == -1 and image.max() <= 1.000001 and image[0, 2, 3, 4] == pytest.approx(7 / 127.5 - 1, abs=1e-6)
    assert (from_tensor(image[0]) == rgb).all()
    assert from_tensor(np.array([[[-9.0]], [[0.0]], [[9.0]]], np.float32)).ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 128), (65, 63), (100, 17)])
def test_padding(height: int, width: int) -> None:
    rgb = gradient(height, width)
    padded = pad_picture(rgb)
    assert padded.shape[0] % 64 == 0 == padded.shape[1] % 64 and padded.shape[0] - height < 64
    assert (padded[:height, :width] == rgb).all()
    if height % 64:
        assert (padded[height, :width] == rgb[height - 2]).all()


@pytest.mark.parametrize("format", ["png", "webp", "jpeg", "JPG"])
def test_save(format: str) -> None:
    found = load_picture(save_picture(gradient(), format, quality=95))
    assert np.abs(found.astype(int) - gradient()).mean() <= (0 if format == "png" else 6)
    with pytest.raises(UnsupportedFormat, match="choose"):
        save_picture(gradient(), "gif")
