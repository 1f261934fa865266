"""Picture files to pixels and tensors, and back.

No picture is trusted: only JPEG, PNG, WebP, AVIF and, with the extra ``heif``, HEIF are opened, and the size in the
header is checked before any pixel is decoded. The result is always 8-bit sRGB, upright, with transparency over white.
Colour profiles are applied (:mod:`aeic.picture_files.colour`).

rgb: (H, W, 3) uint8. image: (3, H, W) float32 in [-1, 1].
"""

from __future__ import annotations

import contextlib
import io
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from aeic.bitstream import MAX_SIDE, MIN_SIDE
from aeic.errors import InputError, TooLarge, Unreadable, UnsupportedFormat, remedy
from aeic.picture_files import colour, headers, items
from aeic.picture_files.headers import JPEG, PNG, Jpeg
from aeic.profiles import PICTURE_MULTIPLE

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
FORMATS = ("JPEG", "PNG", "WEBP")
"""What is read on every machine, and written."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".heic", ".heif")
"""Of the files that may be pictures. One that cannot be read on this machine is refused with the remedy."""
MAX_FILE_BYTES = 256 << 20
_STRIP_ROWS = 512
_HEAVY = ("AVIF", "HEIF")
"""Their readers take up to twice the memory per pixel, so half as many pixels are taken."""
_MAX_METADATA_BYTES = 32 << 20
"""Of a HEIF file, with the copies that its reader makes."""
_CODED_SHARE = 8
"""The pixels coded in an AVIF file, for each one of the picture: it may have transparency, a gain map and a thumbnail,
and its tiles may reach over its borders."""
_LEAST_CODED = 1 << 16
_STRETCH = (0.001, 0.999)
"""Quantiles of the grey levels that become black and white: single hot and dead pixels do not count."""
_END_OF_JPEG = b"\xff\xd9"
_OURS = (JPEG, PNG, b"RIFF")
_PAST_THE_END = bytes(32)
"""What a JPEG reader is given behind the data, so that it finishes the last blocks but cannot make up many more."""
_OTHER_PADDING = b"\x5a\xa5" * 64


def load_picture(data: bytes | str | Path, *, max_pixels: int = MAX_SIDE * MAX_SIDE, stretch: bool = False) -> Pixels:
    """Read a picture file, from its bytes or its path, as (H, W, 3) uint8.

    Turned as EXIF says; colours are converted to sRGB; transparency is laid over white; grey, palette, CMYK and 16-bit
    pictures are converted. ``stretch``: the levels that a 16-bit grey picture uses become 0 to 255, for thermal
    cameras, which use few. A JPEG that lacks only its end marker is read, one that lacks pixels is ``Unreadable``.
    ``UnsupportedFormat``, ``TooLarge`` (over ``max_pixels`` or 8192 a side), ``Unreadable``, or ``InputError`` for
    animations and pictures under 16 a side. ``MemoryError`` where this machine has too little memory for it.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        data = _read_file(Path(data))
    if not data:
        raise Unreadable("the picture is empty (0 bytes): send the file itself")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large or odd files; the limits here are our own
        picture, jpeg = _open(bytes(data), max_pixels)
        try:
            if jpeg is not None:
                _load_jpeg(picture, jpeg)
            picture.load()
            return to_rgb(picture, stretch=stretch)
        except (InputError, MemoryError):  # the limits were kept: too little memory is not the picture's fault
            raise
        except Exception as error:  # what Pillow's readers let out of damaged data has no common base
            raise Unreadable(f"the picture is cut short or damaged ({error}): send it again in full") from error


def picture_size(data: bytes, *, max_pixels: int = MAX_SIDE * MAX_SIDE) -> tuple[int, int]:
    """Width and height of a picture file, turned as EXIF says, from its head alone: no pixel is decoded.

    Raises what ``load_picture`` would raise for that head; what comes after it may still be damaged.
    """
    picture = _open_head(data, max_pixels)
    width, height = picture.size
    exif = parse_exif(picture.info.get("exif", b""))  # getexif() might look for it behind the pixels
    return (height, width) if exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8) else (width, height)


def picture_exif(data: bytes) -> Image.Exif:
    """The EXIF of a picture file, empty if it has none or a malformed one; no pixel is decoded.

    Raises what ``load_picture`` would raise for the head of the file.
    """
    return parse_exif(exif_block(data))


def exif_block(data: bytes) -> bytes:
    """The bytes of the EXIF of a picture file, ``b""`` if it has none. Raises what ``picture_exif`` raises."""
    block = _open_head(data, MAX_SIDE * MAX_SIDE).info.get("exif")
    return block if isinstance(block, bytes) else b""


def parse_exif(block: bytes) -> Image.Exif:
    """EXIF from its bytes, empty if they are malformed."""
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # as in to_rgb
        exif.load(block)
    return exif


def to_rgb(picture: Image.Image, *, stretch: bool = False) -> Pixels:
    """A loaded picture of any mode as (H, W, 3) uint8: upright (``picture`` itself is turned), over white, 8-bit.
    ``stretch`` as in ``load_picture``."""
    for name in ("xmp", "XML:com.adobe.xmp"):  # Pillow looks for an orientation there too, which no browser does
        picture.info.pop(name, None)
    to_srgb = colour.converter(picture)
    with contextlib.suppress(Exception):  # a malformed EXIF block says nothing about the pixels: take them as they lie
        ImageOps.exif_transpose(picture, in_place=True)
    width, height = picture.size
    levels = (0, 65535)
    if stretch and picture.mode.startswith("I"):
        histogram = np.zeros(65536, np.int64)
        for _, strip in _strips(picture):
            histogram += np.bincount(_levels(strip).ravel(), minlength=65536)
        levels = used_levels(histogram)
    rgb = np.empty((height, width, 3), np.uint8)
    for top, strip in _strips(picture):
        rgb[top : top + strip.height] = _strip(strip, to_srgb, levels)
    return rgb


def used_levels(histogram: NDArray[np.int64]) -> tuple[int, int]:
    """The darkest and the brightest of 65536 grey levels in use, given how often each occurs."""
    share = np.cumsum(histogram) / max(1, histogram.sum())
    low, high = (int(np.searchsorted(share, quantile)) for quantile in _STRETCH)
    return low, max(high, low + 1)


def to_eight_bits(grey: NDArray[np.uint16], levels: tuple[int, int] = (0, 65535)) -> NDArray[np.uint8]:
    """16-bit grey to 8 bits, rounded: the first of ``levels`` becomes 0, the second 255."""
    low, high = levels
    above = np.clip(grey, low, high).astype(np.uint32) - np.uint32(low)
    return ((above * 255 + (high - low) // 2) // (high - low)).astype(np.uint8)


def to_tensor(rgb: Pixels) -> Floats:
    """(H, W, 3) uint8 to (1, 3, H, W) float32 in [-1, 1]: what the analysis graph takes."""
    image = np.empty((1, 3, *rgb.shape[:2]), np.float32)
    for channel in range(3):  # one channel at a time is a third faster than the transposed whole
        np.multiply(rgb[:, :, channel], np.float32(1 / 127.5), out=image[0, channel])
    image -= np.float32(1)
    return image


def from_tensor(image: Floats) -> Pixels:
    """(3, H, W) float in [-1, 1] to (H, W, 3) uint8, rounded and clipped."""
    levels = image * np.float32(127.5)
    levels += np.float32(127.5)
    np.clip(np.rint(levels, out=levels), 0, 255, out=levels)
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))


def pad_picture(rgb: Pixels) -> Pixels:
    """Reflect (H, W, 3) to the right and bottom until both sides are multiples of 64."""
    height, width, _ = rgb.shape
    below, right = -height % PICTURE_MULTIPLE, -width % PICTURE_MULTIPLE
    if not below and not right:
        return rgb
    return np.pad(rgb, ((0, below), (0, right), (0, 0)), mode="reflect")


def save_picture(rgb: Pixels, format: str = "png", quality: int = 90) -> bytes:
    """The bytes of a ``png``, ``webp`` or ``jpeg`` file; ``quality`` 1..100 for the last two.

    ``UnsupportedFormat`` for any other.
    """
    name = {"JPG": "JPEG"}.get(format.upper(), format.upper())
    if name not in FORMATS:
        raise UnsupportedFormat(f"pictures are not written as {format!r}: choose png, webp or jpeg")
    options = {"compress_level": 4} if name == "PNG" else {"quality": quality}
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(file, name, **options)
    return file.getvalue()


def _read_file(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TooLarge(f"{path} has {size} bytes, over the limit of {MAX_FILE_BYTES}: scale the picture down")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"{path} cannot be read ({error.strerror}): check the name and its permissions") from error


def _open_head(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    if not data:
        raise Unreadable("the picture is empty (0 bytes): send the file itself")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _open(data, max_pixels)[0]


def _open(data: bytes, max_pixels: int) -> tuple[ImageFile.ImageFile, Jpeg | None]:
    jpeg, cicp, kind = None, None, headers.kind(data)
    try:
        if kind in _HEAVY:
            picture = _open_heavy(data, kind)
            if not picture.info.get("icc_profile"):
                cicp = headers.code_points(data)
            max_pixels //= 2
        elif kind is not None:
            raise UnsupportedFormat(f"this is {kind}: send JPEG, PNG, WebP or AVIF, with 8 bits per sample")
        elif data.startswith(JPEG):
            jpeg = headers.read_jpeg(data)
            picture = JpegImageFile(io.BytesIO(jpeg.data + _END_OF_JPEG))
        else:
            if data.startswith(PNG):
                cleaned = headers.clean_png(data)
                data, cicp = cleaned.data, cleaned.cicp
            elif (size := headers.webp_size(data)) is not None:
                _check_most(*size, max_pixels)
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(f"the picture claims far too many pixels: at most {max_pixels} are accepted") from error
    except Exception as error:
        if data.startswith(b"--") and b"\r\nContent-Disposition:" in data[:1024]:
            raise Unreadable(
                "this is a form with a file in it: send the file alone, with curl --data-binary @FILE"
            ) from None
        ours = data.startswith(_OURS) or kind in _HEAVY
        what = "the picture is cut short or damaged" if ours else "this is not a JPEG, PNG, WebP or AVIF file"
        raise Unreadable(f"{what}: send the file itself, in full") from error
    if cicp is not None:
        picture.info["cicp"] = cicp
    width, height = picture.size
    _check_most(width, height, max_pixels)
    if min(width, height) < MIN_SIDE:
        raise InputError(f"the picture is {width}x{height}: both sides must have {MIN_SIDE} pixels or more")
    if picture.format in ("PNG", "WEBP", "AVIF") and getattr(picture, "is_animated", False):
        raise InputError("the picture is animated: send one frame of it")
    if jpeg is not None and jpeg.scans > headers.MAX_JPEG_SCANS:
        most = headers.MAX_JPEG_SCANS
        raise InputError(
            f"this JPEG has {jpeg.scans} scans, and at most {most} are read: save it again as a baseline JPEG"
        )
    return picture, jpeg


def _check_most(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise TooLarge(
            f"the picture is {width}x{height}: at most {max_pixels} pixels and {MAX_SIDE} per side are accepted,"
            " scale it down"
        )


def _open_heavy(data: bytes, kind: str) -> ImageFile.ImageFile:
    if kind == "AVIF":
        from PIL import AvifImagePlugin, features

        if not features.check("avif"):
            raise UnsupportedFormat(
                "this is AVIF, which this build of Pillow cannot read: install Pillow's wheel, or send JPEG"
            )
        picture = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
        if not data.startswith(b"avif", 8) and items.has_tracks(data):
            raise InputError("the picture is animated: send one frame of it")
        coded, (width, height) = items.av1_pixels(data), picture.size
        if coded > _CODED_SHARE * max(width * height, _LEAST_CODED):
            raise TooLarge(f"the picture is {width}x{height}, but {coded} pixels are coded in it: save it again")
        return picture
    try:
        import pillow_heif
    except ImportError:
        raise UnsupportedFormat(f"this is HEIF: {remedy('heif')}, or send JPEG, PNG, WebP or AVIF") from None
    if items.metadata_bytes(data) > _MAX_METADATA_BYTES:
        raise TooLarge("the file has too many pictures with too much metadata: save one of them alone")
    reader: Callable[[io.BytesIO], ImageFile.ImageFile] = pillow_heif.HeifImageFile
    return reader(io.BytesIO(data))


def _load_jpeg(picture: ImageFile.ImageFile, jpeg: Jpeg) -> None:
    """Refuse a JPEG if pixels are missing: libjpeg itself would fill them with grey. One of a single scan is decoded
    meanwhile. Arithmetic coding, which no camera uses, hides where the data ends."""
    cut_short = Unreadable("the picture is cut short, pixels are missing: send it again in full")
    if not jpeg.complete:
        raise cut_short
    if jpeg.scans == 1:
        whole = _load_single_scan(picture, jpeg.data)
    elif jpeg.refined or jpeg.arithmetic:
        whole = True
    else:  # what follows the data would show in the picture
        whole = len({_digest(jpeg.data + filler) for filler in (_PAST_THE_END, _OTHER_PADDING)}) == 1
    if not whole:
        raise cut_short


def _load_single_scan(picture: ImageFile.ImageFile, data: bytes) -> bool:
    """Decode a JPEG of one scan; whether all of its rows are there.

    The data goes in without its end marker. A whole picture is then complete; one that was cut short is not, and gets
    its last row only from what libjpeg makes up once it sees the end.
    """
    codec, extents, _, arguments = picture.tile[0]
    picture.load_prepare()
    decoder = Image._getdecoder(picture.mode, codec, arguments, picture.decoderconfig)
    decoder.setimage(picture.im, extents)
    try:
        stream = data + _PAST_THE_END
        taken, failed = decoder.decode(stream)
        if failed:
            return True  # Pillow's own reading says what is wrong
        if taken >= 0:  # it wants more
            last_row = (0, picture.height - 1, picture.width, picture.height)
            empty = picture.im.crop(last_row).getbbox() is None
            _, failed = decoder.decode(stream[taken:] + _END_OF_JPEG)
            if failed:
                return True
            if empty and picture.im.crop(last_row).getbbox() is not None:
                return False
        picture.tile = []
        return True
    finally:
        decoder.cleanup()


def _digest(stream: bytes) -> int:
    """The CRC-32 of the pixels of a JPEG without its end marker."""
    crc = 0
    with JpegImageFile(io.BytesIO(stream + _END_OF_JPEG)) as picture:
        picture.load()
        for _, strip in _strips(picture):
            crc = zlib.crc32(strip.tobytes(), crc)
    return crc


def _strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The top row of each strip, and the strip: a copy of the whole for each step would triple the memory."""
    width, height = picture.size
    for top in range(0, height, _STRIP_ROWS):
        yield top, picture.crop((0, top, width, min(height, top + _STRIP_ROWS)))


def _levels(picture: Image.Image) -> NDArray[np.uint16]:
    return np.clip(np.asarray(picture), 0, 65535).astype(np.uint16)


def _strip(picture: Image.Image, to_srgb: colour.Converter | None, shown_levels: tuple[int, int]) -> Pixels:
    if picture.mode.startswith("I"):  # 16-bit grey
        levels = _levels(picture)
        shown = Image.fromarray(to_eight_bits(levels, shown_levels))
        rgb = np.array((to_srgb(shown) if to_srgb else shown).convert("RGB"))
        if isinstance(clear := picture.info.get("transparency"), int):
            rgb[levels == clear] = 255
        return rgb
    alpha = None
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
        picture = picture.convert("RGB")
    elif picture.mode not in ("RGB", "L", "CMYK"):
        picture = picture.convert("RGB")
    picture = to_srgb(picture) if to_srgb else picture.convert("RGB")
    if alpha is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, (255, 255, 255)), alpha)
    return np.asarray(picture)
