"""When a picture was taken: from its sender, else EXIF, else the file's modification time, else the time of arrival."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Callable

from PIL import ExifTags, Image

from aeic.pixels import picture_exif
from edge_encoder.spool.record import CLOCK_IS_SET_MS, CapturedFrom

_MAX_MS = 1 << 53
# Up to here a number counts seconds (until the year 5138), from here on milliseconds (since 1973).
_MILLISECONDS_FROM = 100_000_000_000
_NUMBER = re.compile(r"\d{1,15}(\.\d{1,9})?", re.ASCII)


def parse_time(text: str) -> int:
    """Milliseconds since 1970 of an RFC 3339 time (UTC if it names no zone), or of a number of seconds or
    milliseconds since 1970, which differ by their size. ValueError for anything else."""
    if _NUMBER.fullmatch(text):
        number = float(text)
        value = int(number) if number >= _MILLISECONDS_FROM else round(number * 1000)
    else:
        moment = datetime.datetime.fromisoformat(text)
        try:
            value = int((moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp() * 1000)
        except OverflowError:
            value = -1
    if not 0 <= value < _MAX_MS:
        raise ValueError(f"{text[:40]!r} is out of range")
    return value


def exif_time_ms(picture: bytes, read_exif: Callable[[bytes], Image.Exif] = picture_exif) -> int:
    """Milliseconds since 1970 at which EXIF says that the file's picture was taken, in the zone of this machine where
    EXIF names none; 0 if it does not say."""
    with contextlib.suppress(Exception):  # EXIF may be malformed in any way
        tags = read_exif(picture).get_ifd(ExifTags.IFD.Exif)
        text = _text(tags[ExifTags.Base.DateTimeOriginal])
        moment = datetime.datetime.strptime(text, "%Y:%m:%d %H:%M:%S")
        digits = _text(tags.get(ExifTags.Base.SubsecTimeOriginal, "")).ljust(3, "0")[:3]
        with contextlib.suppress(ValueError):
            zone = _text(tags.get(ExifTags.Base.OffsetTimeOriginal, ""))
            moment = moment.replace(tzinfo=datetime.datetime.strptime(zone, "%z").tzinfo)
        value = int(moment.timestamp()) * 1000 + (int(digits) if digits.isdigit() else 0)
        return value if 0 < value < _MAX_MS else 0
    return 0


def captured(
    picture: object,
    captured_ms: int,
    captured_from: CapturedFrom,
    arrived_ms: int,
    read_exif: Callable[[bytes], Image.Exif] = picture_exif,
) -> tuple[int, CapturedFrom]:
    """When the picture was taken (milliseconds since 1970, 0 for unknown), and where that comes from.

    `captured_ms` is what is known without the picture, of `captured_from`; `arrived_ms` is when it arrived, by the
    clock of this machine. Where that clock is not set yet, the time is unknown, and the spool derives it when the frame
    is sent.
    """
    if captured_ms and captured_from is not CapturedFrom.FILE:
        return captured_ms, captured_from
    if isinstance(picture, bytes) and (taken := exif_time_ms(picture, read_exif)):
        return taken, CapturedFrom.EXIF
    if captured_ms:
        return captured_ms, captured_from
    return (arrived_ms, CapturedFrom.CLOCK) if arrived_ms >= CLOCK_IS_SET_MS else (0, CapturedFrom.UNKNOWN)


def _text(value: object) -> str:
    return str(value).strip("\0 ")
