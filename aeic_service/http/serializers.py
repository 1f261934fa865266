"""Values that the answers of both services contain, each in one form."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(ms: int | None) -> str | None:
    """A time in milliseconds since 1970; None if it is missing or out of range."""
    if not ms:
        return None
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return None  # an edge's clock may be wrong by any amount


def bits_per_pixel(size: int, width: int, height: int) -> float:
    """Of a frame with ``size`` bytes, the whole bitstream."""
    return round(8 * size / (width * height), 6)
