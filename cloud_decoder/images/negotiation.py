"""The format of a picture for a client that names none in the URL, by its ``Accept`` header (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re

from cloud_decoder.errors import NotAcceptable
from cloud_decoder.images.formats import FORMATS

_RANGE = re.compile(r"([a-z0-9!#$&^_.+-]+|\*)/([a-z0-9!#$&^_.+-]+|\*)")
_WEIGHT = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_MOST_RANGES = 100


def acceptable_format(accept: str) -> str:
    """The format that the header prefers; PNG where it prefers none. ``NotAcceptable`` if it excludes all.

    Of formats with the same weight, one that the header names comes before one that only a wildcard covers, and then
    the order is that of ``FORMATS``. Parts of the header that cannot be read are ignored.
    """
    ranges = [found for part in accept.lower().split(",")[:_MOST_RANGES] if (found := _parsed(part)) is not None]
    if not ranges:
        return next(iter(FORMATS))
    best: tuple[float, int] = (0.0, 0)
    chosen = None
    for name, (media_type, _) in FORMATS.items():
        kind = media_type.partition("/")[0]
        covering = [(precision, weight) for of, sub, precision, weight in ranges if _covers(of, sub, kind, media_type)]
        if not covering:
            continue
        precision, weight = max(covering)  # the most precise range decides
        rank = (weight, int(precision == 2))
        if weight > 0 and rank > best:
            best, chosen = rank, name
    if chosen is None:
        offered = ", ".join(media_type for media_type, _ in FORMATS.values())
        raise NotAcceptable(f"Accept excludes every picture format: accept one of {offered}, or give ?format=")
    return chosen


def _covers(of: str, sub: str, kind: str, media_type: str) -> bool:
    return (of, sub) == ("*", "*") or (of, sub) == (kind, "*") or f"{of}/{sub}" == media_type


def _parsed(part: str) -> tuple[str, str, int, float] | None:
    """Type, subtype, precision (0 to 2) and weight of one media range."""
    words = [word.strip() for word in part.split(";")]
    found = _RANGE.fullmatch(words[0])
    if found is None:
        return None
    weight = 1.0
    for word in words[1:]:
        if word.startswith("q="):
            given = _WEIGHT.fullmatch(word)
            if given is None:
                return None
            weight = float(given[1])
    of, sub = found[1], found[2]
    return of, sub, (of != "*") + (sub != "*"), weight
