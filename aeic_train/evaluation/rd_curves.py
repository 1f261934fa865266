"""Curves of rate against distortion: the search for settings, values at equal bits, BD-rates, CompressAI's JSON.

A *point* is a dict of means over pictures ("bpp", "psnr", ...), and a curve is a list of points of one codec. This
module handles only numbers, and neither codecs nor pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Point = dict[str, float]

OWN = ("psnr", "ms_ssim", "st_lpips", "efflite_lpips", "efflite_dists", "efflite_fd")
"""The metrics that are always computed (metrics.py)."""
MEASURES = (*OWN, "lpips", "dists", "fid", "kid", "musiq", "clipiqa")
"""The metrics that a table may have besides bpp. A point may lack some of them; the last six are perceptual ones."""
RISING = {"psnr", "ms_ssim", "musiq", "clipiqa"}
"""Metrics for which larger is better. The others are distances."""
COMPARED = ("st_lpips", "psnr", "ms_ssim", "efflite_lpips", "efflite_fd", "lpips", "dists", "fid", "kid")
"""Metrics for which BD-rates are computed."""
KEYS = {"psnr": "psnr-rgb", "ms_ssim": "ms-ssim-rgb"}
"""Names in CompressAI's JSON that are not our names with hyphens."""


LEAP = 8
"""The most settings that a search moves beyond the known ones in one step, because high qualities are slow to code."""


def key(measure: str) -> str:
    """The name of ``measure`` in CompressAI-shaped JSON."""
    return KEYS.get(measure, measure.replace("_", "-"))


def search(
    count: int, start: int, targets: Sequence[float], bpp: Callable[[int], float], tolerance: float = 0.08
) -> None:
    """Call ``bpp(index)`` until each of ``targets`` is met within ``tolerance`` or lies between two neighbours.

    ``bpp`` rises with the index (0..count-1). A call is expensive, because it codes all pictures; the caller keeps the
    results.
    """
    known: dict[int, float] = {}

    def measure(index: int) -> None:
        known[index] = max(bpp(index), 1e-9)

    measure(min(max(start, 0), count - 1))
    for target in sorted(targets):
        for _ in range(12):
            below = max((i for i in known if known[i] <= target), default=None)
            above = min((i for i in known if known[i] > target), default=None)
            near = [i for i in known if abs(math.log(known[i] / target)) <= tolerance]
            if near or (below is not None and above is not None and above - below <= 1):
                break
            if below is not None and above is not None:
                share = math.log(target / known[below]) / math.log(known[above] / known[below])
                measure(min(max(round(below + share * (above - below)), below + 1), above - 1))
                continue
            edge = max(known) if above is None else min(known)
            if edge in (0, count - 1) and (edge == 0) == (below is None):
                break  # the codec does not go that far
            step = round(math.log(target / known[edge]) / _slope(known))
            step = min(max(step, 1), LEAP) if above is None else max(min(step, -1), -LEAP)
            measure(min(max(edge + step, 0), count - 1))


def _slope(known: dict[int, float]) -> float:
    """Change of log bpp for one setting. Until two points are known, a sixth of an octave, as for a quantiser."""
    low, high = min(known), max(known)
    if low == high or known[high] <= known[low]:
        return math.log(2) / 6
    return max(math.log(known[high] / known[low]) / (high - low), 0.01)


def at(curve: Sequence[Point], measure: str, bpp: float) -> float | None:
    """``measure`` at ``bpp``, by pchip over log bpp. None outside the curve's rates."""
    from scipy.interpolate import PchipInterpolator

    pairs = sorted({p["bpp"]: p[measure] for p in curve if _has(p, measure)}.items())
    if len(pairs) < 2 or not pairs[0][0] <= bpp <= pairs[-1][0]:
        return None
    return float(PchipInterpolator(np.log([b for b, _ in pairs]), [v for _, v in pairs])(math.log(bpp)))


def bd_rate(anchor: Sequence[Point], test: Sequence[Point], measure: str) -> float | None:
    """The bits that ``test`` needs for equal ``measure``, in percent more (+) or fewer (-) than the anchor.

    The curves are interpolated by pchip over log bpp, with MS-SSIM in decibels. None if the two curves have no common
    range of quality, or if a curve has fewer than two points.
    """
    import bjontegaard

    curves = [_quality(points, measure) for points in (anchor, test)]
    if any(len(curve) < 2 for curve in curves):
        return None
    low, high = (pick(end(q for _, q in c) for c in curves) for pick, end in ((max, min), (min, max)))
    if low >= high:
        return None
    (rates_a, quality_a), (rates_b, quality_b) = (tuple(zip(*curve)) for curve in curves)
    value = bjontegaard.bd_rate(
        rates_a, quality_a, rates_b, quality_b, method="pchip", require_matching_points=False, min_overlap=0
    )
    return float(value) if math.isfinite(value) else None


def _quality(points: Sequence[Point], measure: str) -> list[tuple[float, float]]:
    """(bpp, quality), both rising. A point that needs more bits and is not better is left out."""
    pairs: list[tuple[float, float]] = []
    for bpp, value in sorted((p["bpp"], p[measure]) for p in points if _has(p, measure)):
        quality = value if measure in RISING else -value
        if measure == "ms_ssim":
            quality = -10 * math.log10(max(1 - value, 1e-6))
        if not pairs or (quality > pairs[-1][1] and bpp > pairs[-1][0]):
            pairs.append((bpp, quality))
    return pairs


def _has(point: Point, measure: str) -> bool:
    return measure in point and math.isfinite(point[measure])


def present(curves: Iterable[Sequence[Point]], measures: Sequence[str]) -> list[str]:
    """Those of ``measures`` that a point of one of ``curves`` has."""
    points = [point for curve in curves for point in curve]
    return [measure for measure in measures if any(_has(point, measure) for point in points)]


def document(name: str, description: str, curve: Sequence[Point], **more: Any) -> dict[str, Any]:
    """One codec in CompressAI's form: {"name", "description", "results": {"bpp": [...], "psnr-rgb": [...], ...}}."""
    curve = sorted(curve, key=lambda point: point["bpp"])
    results: dict[str, list[float]] = {"bpp": [round(point["bpp"], 6) for point in curve]}
    for measure in MEASURES:
        if curve and all(_has(point, measure) for point in curve):
            results[key(measure)] = [round(point[measure], 7 if measure == "kid" else 6) for point in curve]
    for seconds in ("encode_seconds", "decode_seconds"):
        if all(_has(point, seconds) for point in curve):
            results[seconds.replace("_seconds", "-time")] = [round(point[seconds], 4) for point in curve]
    return {"name": name, "description": description, **more, "results": results}


def curve_of(document: dict[str, Any]) -> list[Point]:
    """The points of a :func:`document`, or of one of CompressAI's own result files."""
    results = document["results"]
    columns = {name: results[key(name)] for name in ("bpp", *MEASURES) if key(name) in results}
    return [dict(zip(columns, values)) for values in zip(*columns.values(), strict=True)]
