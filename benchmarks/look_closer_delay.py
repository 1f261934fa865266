"""How much answers to requests delay acknowledged frames on a thin link: `python -m benchmarks.look_closer_delay`.

The uplink's own code sends frames over a link in simulated time, first alone and then beside answers, so the figures
are the same on every machine. A frame that answers goes ahead of the others; a file goes in pieces, behind them. The
last line is JSON: seconds from spooling to acknowledgement, and their ratio to those without answers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path

from edge_encoder.answers.answerer import RequestKind
from tests.support.edge.simulated_link import Plan, Run, simulate


def main() -> int:
    """Prints the delays of frames alone, beside a region of 1,500 bytes every ten seconds, and beside a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes-per-second", type=float, default=2000.0, help="of the link, upwards")
    parser.add_argument("--latency", type=float, default=0.15, help="seconds, each way")
    parser.add_argument("--frame", type=int, default=800, help="bytes of a frame")
    parser.add_argument("--period", type=float, default=1.07, help="seconds between two frames")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--region", type=int, default=1500, help="bytes of each answer for a region")
    parser.add_argument("--file", type=int, default=60_000, help="bytes of the original")
    given = parser.parse_args()
    plan = Plan(given.bytes_per_second, given.latency, given.frame, given.period, given.frames)
    seconds = given.frames * given.period
    regions = tuple((at, RequestKind.REGION, given.region) for at in range(5, int(seconds), 10))
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "alone": simulate(plan, Path(folder)),
            "regions": simulate(dataclasses.replace(plan, asks=regions), Path(folder)),
            "file": simulate(dataclasses.replace(plan, asks=((5.0, RequestKind.ORIGINAL, given.file),)), Path(folder)),
        }
    alone = runs["alone"]
    print("frames beside   mean (s)  most (s)  later by at most (s)")
    for name, run in runs.items():
        later = run.most_later_than(alone)
        print(f"{name:14s} {statistics.mean(run.delays):9.3f} {max(run.delays):9.3f} {later:21.3f}")
    print(json.dumps(_summary(runs, given.region / given.bytes_per_second)))
    return 0


def _summary(runs: dict[str, Run], budget_seconds: float) -> dict[str, float | None]:
    alone, regions, file = (runs[name] for name in ("alone", "regions", "file"))
    return {
        "alone_mean_seconds": round(statistics.mean(alone.delays), 3),
        "regions_ratio": round(statistics.mean(regions.delays) / statistics.mean(alone.delays), 3),
        "file_ratio": round(statistics.mean(file.delays) / statistics.mean(alone.delays), 3),
        "regions_later_seconds": round(regions.most_later_than(alone), 3),
        "budget_seconds": round(budget_seconds, 3),
        "file_later_seconds": round(file.most_later_than(alone), 3),
        "largest_piece_bytes": max(file.pieces),
        "file_seconds": round(file.answered[0], 1) if file.answered else None,  # it did not end beside the frames
    }


if __name__ == "__main__":
    sys.exit(main())
