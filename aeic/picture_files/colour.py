"""Converts the colours of a picture file to sRGB: ICC profiles with LittleCMS, ITU-T H.273 code points (PNG's cICP,
AVIF, HEIF), PNG's gAMA and cHRM chunks, and Adobe RGB where a camera says so in EXIF alone.

The codec was trained on sRGB. A wide-gamut photograph would come out pale if its values were read as sRGB. If a profile
cannot be used, the pixels are assumed to be sRGB.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

Matrix = NDArray[np.float64]
Converter = Callable[[Image.Image], Image.Image]
"""A strip of the picture, of mode RGB, L or CMYK as the picture's own, to RGB in sRGB."""

MAX_PROFILE_BYTES = 4 << 20
SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space of an ICC profile, and the mode of the pictures that it describes."""
_D65 = (0.3127, 0.3290)
_SRGB = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""White, red, green and blue, x and y of each, as Pillow gives cHRM."""
_PRIMARIES = {
    1: _SRGB,
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # DCI-P3
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
"""Colour primaries of ITU-T H.273 that photographs come in."""
_ADOBE_RGB = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_ADOBE_GAMMA = 563 / 256
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def converter(picture: Image.Image) -> Converter | None:
    """How to convert strips of this opened picture to sRGB; ``None`` if no conversion is needed or none is known."""
    info = picture.info
    if (cicp := info.get("cicp")) is not None:
        found = _from_cicp(cicp)
        if found is not None:
            return found[0]
    profile = info.get("icc_profile")
    if isinstance(profile, bytes) and 0 < len(profile) <= MAX_PROFILE_BYTES:
        return _from_icc(profile, picture.mode)
    if _is_adobe_rgb(info.get("exif")):
        return _linear_to_srgb((np.arange(256) / 255) ** _ADOBE_GAMMA, _ADOBE_RGB)
    if "srgb" not in info and "gamma" in info:
        return _from_gamma(float(info["gamma"]), info.get("chromaticity"))
    return None


def _is_adobe_rgb(exif: object) -> bool:
    """Whether EXIF names the optional colour space of DCF 2.0. Cameras that are set to it write no profile."""
    if not isinstance(exif, bytes):
        return False
    try:
        tags = Image.Exif()
        tags.load(exif)
        index = tags.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
    except Exception:  # EXIF may be malformed in any way
        return False
    return index is not None and str(index).strip("\0 ") == "R03"


def _from_icc(profile: bytes, mode: str) -> Converter | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        wanted = SPACES.get(source.profile.xcolor_space)
        if wanted is None or (wanted == "CMYK") != (mode == "CMYK"):
            return None
        if wanted == "RGB" and "sRGB" in ImageCms.getProfileDescription(source):
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            wanted,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except Exception:  # LittleCMS refuses damaged profiles with errors of several kinds
        return None

    def convert(strip: Image.Image) -> Image.Image:
        made = ImageCms.applyTransform(strip if strip.mode == wanted else strip.convert(wanted), transform)
        assert made is not None
        return made

    return convert


def _from_cicp(cicp: tuple[int, int, int, int]) -> tuple[Converter | None] | None:
    """The conversion in a tuple of one; ``None`` for a description that is not supported, such as HDR."""
    primaries, transfer, matrix, full_range = cicp
    chromaticity = _PRIMARIES.get(primaries)
    if chromaticity is None or matrix != 0 or full_range != 1:
        return None
    if transfer == 8:
        return (_linear_to_srgb(np.arange(256) / 255, chromaticity),)
    if transfer in (1, 6, 13, 14, 15):  # BT.709 and its kin are shown as sRGB is
        return (None if primaries == 1 else _linear_to_srgb(_srgb_to_linear(np.arange(256) / 255), chromaticity),)
    return None


def _from_gamma(gamma: float, chromaticity: Any) -> Converter | None:
    if not 0.1 < gamma < 10:
        return None
    try:
        given = tuple(float(value) for value in chromaticity) if chromaticity else _SRGB
        usual = bool(np.allclose(given, _SRGB, atol=0.003))
        if usual and abs(gamma - 1 / 2.2) < 0.02:
            return None
        return _linear_to_srgb((np.arange(256) / 255) ** (1 / gamma), _SRGB if usual else given)
    except (TypeError, ValueError, np.linalg.LinAlgError):
        return None


def _linear_to_srgb(linear: Matrix, chromaticity: tuple[float, ...]) -> Converter:
    """``linear`` (256,): the light of each level. Primaries other than sRGB's are turned into them."""
    if chromaticity == _SRGB:
        table = np.rint(255 * _srgb_from_linear(linear)).astype(int).tolist()
        return lambda strip: strip.convert("RGB").point(table * 3)
    turn = (np.linalg.inv(_to_xyz(_SRGB)) @ _adaptation(chromaticity[:2]) @ _to_xyz(chromaticity)).astype(np.float32)
    light = linear.astype(np.float32)

    def convert(strip: Image.Image) -> Image.Image:
        turned = light[np.asarray(strip.convert("RGB"))] @ turn.T
        levels = np.rint(255 * _srgb_from_linear(np.clip(turned, 0, 1)))
        return Image.fromarray(levels.astype(np.uint8))

    return convert


def _srgb_to_linear(encoded: Matrix) -> Matrix:
    """IEC 61966-2-1."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def _srgb_from_linear(linear: Matrix) -> Matrix:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def _xyz(x: float, y: float) -> Matrix:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _to_xyz(chromaticity: tuple[float, ...]) -> Matrix:
    """Linear RGB of these primaries to XYZ, white having Y = 1. ``LinAlgError`` if they lie on a line."""
    columns = np.stack([_xyz(*chromaticity[k : k + 2]) for k in (2, 4, 6)], axis=1)
    scale: Matrix = np.linalg.solve(columns, _xyz(*chromaticity[:2]))
    return columns * scale


def _adaptation(white: tuple[float, ...]) -> Matrix:
    """Bradford's adaptation of XYZ from ``white`` to D65."""
    before, after = _BRADFORD @ _xyz(*white), _BRADFORD @ _xyz(*_D65)
    adapted: Matrix = np.linalg.inv(_BRADFORD) @ np.diag(after / before) @ _BRADFORD
    return adapted
