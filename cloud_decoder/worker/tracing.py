"""Spans of a frame in the cloud: its stages, and the batch that it was in.

A batch serves frames of many traces, so it has a separate trace and links to each; each frame's synthesis links back.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from aeic_service import tracing
from cloud_decoder.worker.job import DecodeJob

_STAGES = ("queue", "entropy", "device_wait", "synthesis", "image")
_batches: WeakKeyDictionary[DecodeJob, bytes] = WeakKeyDictionary()


def batch(jobs: Sequence[DecodeJob], items: int, seconds: float) -> None:
    """Record a batch that has just left the device after ``seconds``."""
    if not tracing.on():
        return
    links = [tracing.kept(row.id) for job in jobs for row in job.rows]
    attributes = {"aeic.pieces": items, "aeic.frames": len(jobs)}
    made = tracing.span("cloud.batch", seconds, links=links, attributes=attributes)
    for job in jobs:
        _batches[job] = made


def decoded(job: DecodeJob) -> None:
    """Record the stages of a finished job under the trace of each of its frames."""
    if not tracing.on():
        return
    whole = sum(job.timings.get(stage, 0.0) for stage in _STAGES)
    for row in job.rows:
        context = tracing.kept(row.id)
        if not context:
            continue
        begun = job.arrived
        attributes = {"aeic.frame": str(row.id), "aeic.bytes": row.bytes, "aeic.pixels": row.width * row.height}
        over = tracing.span("cloud.decode", whole, ended=begun + whole, under=context, attributes=attributes)
        for stage in _STAGES:
            seconds = job.timings.get(stage, 0.0)
            begun += seconds
            links = [_batches.get(job, b"")] if stage == "synthesis" else []
            tracing.span(f"cloud.{stage}", seconds, ended=begun, under=over, links=links)
