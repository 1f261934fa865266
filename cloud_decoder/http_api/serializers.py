"""Frames, sources and bundles as JSON. Sizes in bytes, times in seconds or RFC 3339."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aeic.bundle import Bundle
from aeic_service.errors import InvalidParameter
from aeic_service.http.serializers import bits_per_pixel, rfc3339
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.presence import Box
from cloud_decoder.store.store import RequestState, StoredFrame, StoredRequest


def frame_json(row: StoredFrame, bundles: Mapping[str, Bundle]) -> dict[str, Any]:
    """A stored frame. bpp counts the whole bitstream; the rate's name is the one in its bundle, if that is known."""
    bundle = bundles.get(row.fingerprint)
    return {
        "id": str(row.id),
        "state": row.state.value,
        "source": row.source,
        "width": row.width,
        "height": row.height,
        "original_width": row.original_width,
        "original_height": row.original_height,
        "bytes": row.bytes,
        "bpp": bits_per_pixel(row.bytes, row.width, row.height),
        "rate": row.rate,
        "rate_name": bundle.rates[row.rate].name if bundle and row.rate < len(bundle.rates) else None,
        "fingerprint": row.fingerprint,
        "digest": row.digest,
        "latents_digest": row.latents_digest,
        "priority": row.priority,
        "captured_at": rfc3339(row.captured_ms),
        "captured_from": row.captured_from,
        "received_at": rfc3339(row.received_ms),
        "available_at": rfc3339(row.available_ms),
        "reason": row.reason,
        "timings": row.timings,
        "parent": None if row.parent is None else str(row.parent),
        "kind": row.kind,
        "region": region_json(row.region),
        "media_type": row.media_type,
    }


def request_json(one: StoredRequest) -> dict[str, Any]:
    """A request for more of a picture."""
    return {
        "id": str(one.id),
        "frame": str(one.parent),
        "kind": one.kind.value,
        "region": region_json(one.region),
        "max_bytes": one.max_bytes,
        "bytes": one.bytes,
        "state": one.state.value,
        "reason": None if one.reason is None else one.reason.value,
        "detail": one.detail,
        "answer": str(one.id) if one.state is RequestState.ANSWERED else None,
        "created_at": rfc3339(one.created_ms),
        "deadline_at": rfc3339(one.deadline_ms),
        "finished_at": rfc3339(one.finished_ms),
    }


def region_json(region: list[int] | None) -> dict[str, int] | None:
    """x, y, width and height by name."""
    return None if region is None else dict(zip(("x", "y", "width", "height"), region, strict=True))


def source_json(
    one: Mapping[str, Any],
    waiting: int,
    connected: bool,
    newest: dict[str, Any] | None = None,
    box: Box | None = None,
) -> dict[str, Any]:
    """A source, as :meth:`Frames.sources <cloud_decoder.store.frames.Frames.sources>` lists it.

    ``newest``: its last frame, as :func:`frame_json` makes it. ``box``: what the box of that name reports about itself.
    """
    return {
        "source": one["source"],
        "frames": one["frames"],
        "bytes": one["bytes"],
        "waiting": waiting,
        "first_seen_at": rfc3339(one["first_seen_ms"]),
        "last_seen_at": rfc3339(one["last_seen_ms"]),
        "connected": connected,
        "box": None if box is None else dataclasses.asdict(box),
        "newest": newest,
    }


def bundles_json(model_pool: ModelPool) -> dict[str, Any]:
    """``bundles``: all that are known, the default one first, whether each is in memory, and its rates.

    ``bundle`` and ``rates`` are those of the default one.
    """
    bundles = [bundle_json(one) | {"loaded": model_pool.loaded(one.fingerprint)} for one in model_pool.bundles.values()]
    names = ("name", "fingerprint", "digest")
    return {"bundle": {name: bundles[0][name] for name in names}, "rates": bundles[0]["rates"], "bundles": bundles}


def bundle_json(bundle: Bundle) -> dict[str, Any]:
    """A bundle's names and its rate points."""
    return {
        "name": bundle.name,
        "fingerprint": bundle.fingerprint,
        "digest": bundle.digest.hex(),
        "rates": [{"number": rate.number, "name": rate.name, "bpp": rate.bpp} for rate in bundle.rates],
    }


def milliseconds(time: datetime | None) -> int | None:
    """A time in the store's unit. ``InvalidParameter`` if it is out of range."""
    if time is None:
        return None
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    try:
        return math.floor(aware.timestamp() * 1000)
    except (OverflowError, ValueError):
        raise InvalidParameter("that time is out of range") from None
