"""Files as cameras and programs write them: colour profiles, odd metadata, files that are cut, files of other kinds.

The files in pictures/ were made for these tests; truth_srgb.png is what the others should look like.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aeic.errors import InputError, Unreadable, UnsupportedFormat
from aeic.picture_files import headers
from aeic.pixels import load_picture, picture_size, save_picture
from tests.support.colour_difference import delta_e

PICTURES = Path(__file__).parent / "pictures"
TRUTH = load_picture(PICTURES / "truth_srgb.png")


def read(name: str) -> np.ndarray:
    return load_picture(PICTURES / name)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk, behind IHDR."""
    return data[:33] + chunk(kind, body) + data[33:]


@pytest.mark.parametrize("name", ["icc_p3.jpg", "icc_adobe.jpg", "gAMA_linear.png"])
def test_colours_come_out_as_in_srgb(name: str) -> None:
    """Mean CIEDE2000 under 1.0 against the truth, the JPEG's own losses included."""
    assert delta_e(read(name), TRUTH).mean() < 1.0


@pytest.mark.parametrize(("name", "at_least"), [("icc_p3.jpg", 2.0), ("icc_adobe.jpg", 2.0), ("gAMA_linear.png", 10.0)])
def test_without_conversion_they_would_not(name: str, at_least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: what was read before profiles were applied."""
    monkeypatch.setattr("aeic.picture_files.colour.converter", lambda picture: None)
    assert delta_e(read(name), TRUTH).mean() > at_least


def test_cicp_says_display_p3() -> None:
    """The P3 pixels without their profile, described by cICP (12, 13, 0, 1), against the same through LittleCMS."""
    with Image.open(PICTURES / "icc_p3.jpg") as picture:
        stored = np.asarray(picture.convert("RGB"))
    described = with_chunk(save_picture(stored), b"cICP", bytes([12, 13, 0, 1]))
    assert np.abs(load_picture(described).astype(int) - read("icc_p3.jpg")).max() <= 3


@pytest.mark.parametrize("cicp", [bytes([9, 16, 0, 1]), bytes([99, 13, 0, 1]), bytes([1, 13, 0, 1]), b"\1"])
def test_a_cicp_of_hdr_or_of_nothing_leaves_the_pixels(cicp: bytes) -> None:
    assert (load_picture(with_chunk(save_picture(TRUTH), b"cICP", cicp)) == TRUTH).all()


@pytest.mark.parametrize(
    "profile", [b"", b"no profile", bytes(200), b"x" * 5_000_000], ids=["empty", "text", "zero", "huge"]
)
def test_a_profile_that_cannot_be_used_is_ignored(profile: bytes) -> None:
    body = b"name\0\0" + zlib.compress(profile)
    assert (load_picture(with_chunk(save_picture(TRUTH), b"iCCP", body)) == TRUTH).all()


def test_cmyk_with_a_grey_profile_is_read_without_it() -> None:
    with Image.open(PICTURES / "icc_p3.jpg") as picture:
        profile = picture.info["icc_profile"]
    file = io.BytesIO()
    Image.fromarray(TRUTH).convert("CMYK").save(file, "JPEG", icc_profile=profile, quality=95)
    assert load_picture(file.getvalue()).shape == TRUTH.shape


@pytest.mark.parametrize("name", ["xmp_2mb_compressed.png", "bad_crc_in_tIME.png"])
def test_metadata_does_not_lose_a_whole_png(name: str) -> None:
    assert (read(name) == TRUTH).all()


def test_a_damaged_pixel_chunk_is_still_refused() -> None:
    data = bytearray(save_picture(TRUTH))
    data[data.index(b"IDAT") + 40] ^= 1
    with pytest.raises(Unreadable):
        load_picture(bytes(data))


def test_exif_behind_the_pixels_turns_the_picture_and_its_size() -> None:
    data = (PICTURES / "orientation_after_IDAT.png").read_bytes()
    assert load_picture(data).shape == (128, 96, 3)
    assert picture_size(data) == (96, 128)


def test_transparent_grey_of_sixteen_bits_lies_over_white() -> None:
    with Image.open(PICTURES / "grey16_tRNS.png") as picture:
        levels, clear = np.asarray(picture), picture.info["transparency"]
    assert (levels == clear).any()
    assert (read("grey16_tRNS.png")[levels == clear] == 255).all()
    assert (read("grey16_tRNS.png")[levels != clear] < 255).any()


def jpeg(progressive: bool = False) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (400, 640, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=80, progressive=progressive)
    return file.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_only_its_end_is_whole(progressive: bool) -> None:
    data = jpeg(progressive)
    assert (load_picture(data[:-2]) == load_picture(data)).all()
    assert (load_picture(data + bytes(5000)) == load_picture(data)).all()
    assert read("no_eoi.jpg").shape == TRUTH.shape


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9", b"\xff\xd9\0\0\xff\xd9"])
def test_a_jpeg_that_lacks_rows_is_refused(share: float, end: bytes) -> None:
    """With an end marker behind it, libjpeg alone would fill half the picture with grey and say nothing."""
    data = jpeg()
    with pytest.raises(Unreadable, match="cut short"):
        load_picture(data[: int(share * len(data))] + end)


def test_a_jpeg_with_too_many_scans_is_refused_at_once() -> None:
    data = jpeg(progressive=True)
    scan = data[data.index(b"\xff\xda") : -2]
    with pytest.raises(InputError, match="scans"):
        load_picture(data[:-2] + 100 * scan + b"\xff\xd9")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypheic", "HEIF"),
        (b"\0\0\0\x18ftypavif", "AVIF"),
        (b"\0\0\0\x18ftypisom", "MP4 video"),
        (b"RIFF\0\0\0\0AVI LIST", "AVI video"),
        (b"GIF89a", "GIF"),
        (b"\xff\xd8\xff\xc3\0\x0b\x08", "lossless JPEG"),
    ],
)
def test_other_kinds_are_named(start: bytes, name: str) -> None:
    assert headers.kind(start + bytes(64)) == name
    with pytest.raises(UnsupportedFormat, match=name):
        load_picture(start + bytes(64))


@pytest.mark.parametrize(("file", "name"), [("sof_12bit.jpg", "12-bit JPEG"), ("video_named.jpg", "MP4 video")])
def test_files_of_another_kind_under_a_known_name(file: str, name: str) -> None:
    with pytest.raises(UnsupportedFormat, match=name):
        read(file)
