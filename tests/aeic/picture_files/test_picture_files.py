"""Files as cameras and programs write them: colour profiles, odd metadata, files that are cut, files of other kinds.

The files in pictures/ were made for these tests; truth_srgb.png is what the others should look like.
"""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from aeic.errors import InputError, TooLarge, Unreadable, UnsupportedFormat
from aeic.picture_files import headers, items
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


END = b"\xff\xd9"


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("end", [b"", END, END + b"\0\0" + END, END + b"dhav1234"], ids=["", "end", "ends", "trailer"])
def test_a_jpeg_that_lacks_rows_is_refused(share: float, end: bytes) -> None:
    """With an end marker behind it, libjpeg alone would fill half the picture with grey and say nothing."""
    data = jpeg()
    with pytest.raises(Unreadable, match="cut short"):
        load_picture(data[: int(share * len(data))] + end)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("end", [b"", END])
def test_a_progressive_jpeg_that_lacks_scans_is_refused(share: float, end: bytes) -> None:
    """It would be shown without rows, colours or details."""
    data = jpeg(progressive=True)
    with pytest.raises(Unreadable, match="cut short"):
        load_picture(data[: int(share * len(data))] + end)


def test_a_progressive_jpeg_may_lack_a_part_of_its_last_bits() -> None:
    file = io.BytesIO()
    Image.fromarray(TRUTH).resize((512, 384)).save(file, "JPEG", quality=85, progressive=True)
    data = file.getvalue()
    found = load_picture(data[: int(0.95 * len(data))] + END)
    assert np.abs(found.astype(int) - load_picture(data)).mean() < 1


@pytest.mark.parametrize("share", [0.4, 0.8, 0.98, 1.0])
def test_a_jpeg_with_a_scan_for_each_component(share: float) -> None:
    data = (PICTURES / "non_interleaved.jpg").read_bytes()
    part = data[: int(share * (len(data) - 2))]
    for end in (b"", END):
        if share == 1:
            assert (load_picture(part + end) == load_picture(data)).all()
            continue
        with pytest.raises(Unreadable, match="cut short"):
            load_picture(part + end)


def test_only_the_first_picture_of_a_file_with_several_counts() -> None:
    """As cameras with a preview write it (MPO), and phones with a video behind the photograph."""
    whole, file = jpeg(), io.BytesIO()
    with Image.open(io.BytesIO(whole)) as picture:
        picture.save(file, "MPO", save_all=True, append_images=[picture.resize((320, 200))])
    data = file.getvalue()
    assert load_picture(data).shape == (400, 640, 3)
    assert (load_picture(whole + b"\0\0\0\x18ftypmp42" + bytes(500)) == load_picture(whole)).all()
    second = data.rindex(b"\xff\xd8\xff")
    with pytest.raises(Unreadable, match="cut short"):
        load_picture(data[: second // 2] + END + data[second:])


@pytest.mark.parametrize("piece", [b"\xff\xfe\0\2", b"\xff\x01", b"a", b"\xff"], ids=["COM", "TEM", "text", "fill"])
def test_a_jpeg_of_nothing_but_metadata_costs_little(piece: bytes) -> None:
    """Pillow would go through it byte by byte. Each limit stops the walk: at 8192 segments, at 64 KiB between them."""
    data = jpeg()
    with pytest.raises(Unreadable):
        load_picture(data[:2] + piece * 70_000 + data[2:])


def test_the_orientation_in_xmp_is_no_orientation() -> None:
    """No browser turns such a picture, and its size is the same before and after it is decoded."""
    data, xmp = jpeg(), b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + data[2:]
    assert load_picture(data).shape == (400, 640, 3) and picture_size(data) == (640, 400)


def test_adobe_rgb_named_in_exif_alone() -> None:
    """Cameras set to Adobe RGB write no profile (DCF 2.0). The same pixels as with the profile."""
    with Image.open(PICTURES / "icc_adobe.jpg") as picture:
        stored = picture.convert("RGB")
        stored.info.clear()
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
        file = io.BytesIO()
        stored.save(file, "PNG", exif=exif.tobytes())
    assert np.abs(load_picture(file.getvalue()).astype(int) - read("icc_adobe.jpg")).max() <= 3
    assert delta_e(load_picture(file.getvalue()), TRUTH).mean() < 1.0
    plain = io.BytesIO()
    stored.save(plain, "PNG")
    assert delta_e(load_picture(plain.getvalue()), TRUTH).mean() > 2.0


@pytest.mark.parametrize("progressive", [False, True])
def test_what_a_jpeg_holds_besides_its_picture_takes_no_time(progressive: bool) -> None:
    """Pillow took seconds for megabytes of fill bytes behind the last scan, EXIF without end, or Photoshop's blocks."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(PICTURES / "icc_p3.jpg") as picture:
        profile = picture.info["icc_profile"]
        file = io.BytesIO()
        picture.save(file, "JPEG", progressive=progressive, icc_profile=profile, exif=exif, comment=b"a comment")
    data = file.getvalue()
    place = data.index(b"\xff\xe2")
    segments = [
        b"\xff\xe1\xff\xff" + b"Exif\0\0".ljust(65533, b"\0"),
        b"\xff\xe1\xff\xff" + b"http://ns.adobe.com/xap/1.0/\0".ljust(65533, b" "),
        b"\xff\xed\xff\xff" + b"Photoshop 3.0\0".ljust(65533, b"\0"),
        b"\xff\xe2\xff\xff" + b"MPF\0".ljust(65533, b"\0"),
        b"\xff\xfe\xff\xff" + bytes(65533),
    ]
    padded = data[:place] + b"".join(segments) * 50 + data[place:-2] + b"\xff" * (1 << 20) + data[-2:]
    for whole in (padded, padded[:-2]):
        read_back = headers.read_jpeg(whole).data
        assert len(read_back) < len(data) + headers.MAX_JPEG_EXIF_BYTES + 2 * 65537
        assert np.array_equal(load_picture(whole), load_picture(data))
    assert load_picture(data).shape == (128, 96, 3)


def coded(form: str, picture: Image.Image, **options: Any) -> bytes:
    """A file of the format; skips where this machine cannot write it."""
    file = io.BytesIO()
    if form == "HEIF":
        pillow_heif = pytest.importorskip("pillow_heif", reason="HEIF comes with the extra heif")
        picture.info.update(options)
        pillow_heif.from_pillow(picture).save(file, quality=90, chroma=444)
    else:
        if not features.check("avif"):
            pytest.skip("this build of Pillow has no AVIF")
        picture.save(file, form, quality=90, subsampling="4:4:4", **options)
    return file.getvalue()


HEAVY = pytest.mark.parametrize("form", ["AVIF", "HEIF"])


@HEAVY
def test_avif_and_heif(form: str) -> None:
    data = coded(form, Image.fromarray(TRUTH))
    assert np.abs(load_picture(data).astype(int) - TRUTH).mean() < 3 and picture_size(data) == (128, 96)
    with pytest.raises(TooLarge):
        load_picture(data, max_pixels=2 * 128 * 96 - 1)  # their readers take twice the memory
    for share in (0.1, 0.5, 0.95):
        with pytest.raises(Unreadable, match="cut short"):
            load_picture(data[: int(share * len(data))])
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = coded(form, Image.fromarray(TRUTH), exif=exif.tobytes())
    if form == "AVIF":  # whose writer of HEIF turns the pixels instead
        assert load_picture(turned).shape == (128, 96, 3) and picture_size(turned) == (96, 128)


@HEAVY
def test_colours_of_avif_and_heif(form: str) -> None:
    """By a profile, or by the code points of the container, where there is none."""
    with Image.open(PICTURES / "icc_p3.jpg") as picture:
        stored, profile = picture.convert("RGB"), picture.info["icc_profile"]
    stored.info.clear()
    assert delta_e(load_picture(coded(form, stored, icc_profile=profile)), TRUTH).mean() < 1.3
    stored.info.clear()
    plain = coded(form, stored)
    assert delta_e(load_picture(plain), TRUTH).mean() > 2.0
    place = plain.index(b"colrnclx") + 8
    named = plain[:place] + struct.pack(">HH", 12, 13) + plain[place + 4 :]
    assert delta_e(load_picture(named), TRUTH).mean() < 1.3


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def boxes(data: bytes) -> dict[bytes, bytes]:
    """The boxes that stand one after another in ``data``, each as a whole."""
    found = {}
    while data:
        size = int.from_bytes(data[:4], "big")
        found[data[4:8]], data = data[:size], data[size:]
    return found


def heif_of_many(count: int, exif_bytes: int) -> bytes:
    """A HEIF of ``count`` pictures that share their pixels and one block of EXIF."""
    whole = boxes(coded("HEIF", Image.new("RGB", (64, 64))))
    meta = boxes(whole[b"meta"][12:])
    pixels = whole[b"mdat"][8:]
    properties = boxes(meta[b"iprp"][8:])
    uses = properties[b"ipma"][18:]
    numbers = [struct.pack(">H", number) for number in range(1, count + 1)]
    last = struct.pack(">H", count + 1)
    infe = b"".join(box(b"infe", b"\2\0\0\0" + number + b"\0\0hvc1\0") for number in numbers)
    infe += box(b"infe", b"\2\0\0\0" + last + b"\0\0Exif\0")
    ipma = box(
        b"ipma", properties[b"ipma"][8:12] + struct.pack(">I", count) + b"".join(each + uses for each in numbers)
    )

    def index(begin: int) -> bytes:
        items = b"".join(each + struct.pack(">HHII", 0, 1, begin, len(pixels)) for each in numbers)
        items += last + struct.pack(">HHII", 0, 1, begin + len(pixels), exif_bytes)
        return box(
            b"meta",
            bytes(4)
            + meta[b"hdlr"]
            + box(b"pitm", bytes(4) + numbers[0])
            + box(b"iloc", bytes(4) + b"\x44\0" + last + items)
            + box(b"iinf", bytes(4) + last + infe)
            + box(b"iref", bytes(4) + box(b"cdsc", last + struct.pack(">H", count) + b"".join(numbers)))
            + box(b"iprp", properties[b"ipco"] + ipma),
        )

    begin = len(whole[b"ftyp"]) + len(index(0)) + 8
    return whole[b"ftyp"] + index(begin) + box(b"mdat", pixels + b"\0\0\0\6Exif\0\0" + bytes(exif_bytes - 10))


def test_metadata_that_many_pictures_of_a_heif_share() -> None:
    """pillow_heif copies it for each of them: 7 GB for a file of 8 MB."""
    assert load_picture(heif_of_many(16, 10_000)).shape == (64, 64, 3)
    for read_it in (load_picture, picture_size):
        with pytest.raises(TooLarge, match="metadata"):
            read_it(heif_of_many(80, 1 << 20))


def test_an_avif_that_claims_to_be_smaller_than_it_is() -> None:
    """libavif decodes it whole, and then scales it down."""
    data = coded("AVIF", Image.new("RGB", (1024, 1024)))
    place = data.index(b"ispe") + 8
    assert load_picture(data).shape == (1024, 1024, 3)
    for read_it in (load_picture, picture_size):
        with pytest.raises(TooLarge, match="64x64, but 1048576 pixels are coded"):
            read_it(data[:place] + struct.pack(">II", 64, 64) + data[place + 8 :])


def test_an_animated_avif() -> None:
    data = coded("AVIF", Image.fromarray(TRUTH), save_all=True, append_images=[Image.fromarray(TRUTH[::-1])])
    with pytest.raises(InputError, match="animated"):
        load_picture(data)


@pytest.mark.parametrize(
    ("size", "mode"), [((16, 16), "RGB"), ((16, 16), "RGBA"), ((1000, 700), "RGBA"), ((4000, 600), "L")]
)
def test_what_is_coded_in_an_avif(size: tuple[int, int], mode: str) -> None:
    """Its pixels, and those of its transparency."""
    data = coded("AVIF", Image.new(mode, size))
    planes = 2 if mode == "RGBA" else 1
    assert items.av1_pixels(data) == planes * size[0] * size[1] and load_picture(data).shape == (*size[::-1], 3)


@HEAVY
def test_the_index_of_a_damaged_file_gives_a_typed_error(form: str) -> None:
    data = coded(form, Image.new("RGB", (64, 64)))
    place = data.index(b"meta")
    for index in range(place, place + 200):
        for byte in (0, 1, 0x7F, 0xFF):
            with contextlib.suppress(InputError):
                load_picture(data[:index] + bytes([byte]) + data[index + 1 :])
    many = data + box(b"free", b"") * 10_000
    with pytest.raises(Unreadable):
        load_picture(many)


def test_heif_without_its_extra_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnsupportedFormat, match=r'this is HEIF: run pip install "\.\[heif\]"'):
        load_picture(b"\0\0\0\x18ftypheic" + bytes(64))


def test_avif_without_its_reader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    with pytest.raises(UnsupportedFormat, match="this is AVIF"):
        load_picture(b"\0\0\0\x18ftypavif" + bytes(64))


def test_a_thermal_picture_is_stretched_on_request() -> None:
    """A camera of 14 bits in a room of a few degrees: 1,000 of 65,536 levels, beside a dead pixel and a hot one."""
    levels = (27_000 + 1_000 * np.mgrid[:40, :100][1] / 99).astype(np.uint16)
    levels[3, 3], levels[5, 5] = 0, 65_535
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    plain, shown = load_picture(file.getvalue()), load_picture(file.getvalue(), stretch=True)
    assert np.ptp(plain[10:]) <= 4
    assert shown[10, 0].tolist() == [0, 0, 0] and shown[10, 99].tolist() == [255] * 3
    assert np.abs(shown[10, :, 0].astype(int) - np.linspace(0, 255, 100)).max() <= 1
    assert shown[3, 3, 0] == 0 and shown[5, 5, 0] == 255
    flat = io.BytesIO()
    Image.fromarray(np.full((20, 20), 5_000, np.uint16)).save(flat, "PNG")
    assert len(np.unique(load_picture(flat.getvalue(), stretch=True))) == 1
    assert (load_picture(save_picture(TRUTH), stretch=True) == TRUTH).all()


def test_a_jpeg_with_too_many_scans_is_refused_at_once() -> None:
    data = jpeg(progressive=True)
    scan = data[data.index(b"\xff\xda") : -2]
    with pytest.raises(InputError, match="scans"):
        load_picture(data[:-2] + 100 * scan + b"\xff\xd9")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypisom", "MP4 video"),
        (b"RIFF\0\0\0\0AVI LIST", "AVI video"),
        (b"GIF89a", "GIF"),
        (b"\xff\xd8\xff\xc3\0\x0b\x08", "lossless JPEG"),
        (b"\xff\xd8\xff\xff\xff\xc5\0\x0b\x08", "hierarchical JPEG"),
        (b"\xff\xd8\xff\xf7\0\x0b\x08", "JPEG-LS"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\0\0\0\x18ftypcrx ", "a raw file of a camera"),
        (b"\r\n<!DOCTYPE HTML><html>", "a web page"),
        (b"G" + bytes(187) + b"G", "MPEG-TS video"),
        (b"PK\3\4", "a ZIP archive"),
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


def test_the_size_of_a_webp_is_known_before_its_reader_takes_memory_for_it() -> None:
    for colour, lossless in (("RGB", False), ("RGB", True), ("RGBA", False)):
        file = io.BytesIO()
        Image.linear_gradient("L").resize((300, 170)).convert(colour).save(
            file, "WEBP", exif=b"Exif\0\0" * (colour == "RGBA"), lossless=lossless
        )
        assert headers.webp_size(file.getvalue()) == (300, 170)
    huge = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\x3f\0\xff\x3f\0"
    with pytest.raises(TooLarge, match="16384x16384"):
        picture_size(huge)
    for other in (b"", huge[:29], b"RIFF\x16\0\0\0WEBPJUNK" + bytes(20), save_picture(TRUTH)):
        assert headers.webp_size(other) is None
