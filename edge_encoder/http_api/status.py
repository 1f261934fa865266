"""The answer of GET /v1/status, and the gauges that are read when metrics are scraped."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from typing import TYPE_CHECKING, Any

import aeic
from edge_encoder.errors import SpoolError
from edge_encoder.spool.verification import Verified

if TYPE_CHECKING:
    from edge_encoder.service import EdgeService


def status(service: EdgeService) -> dict[str, Any]:
    """The answer of GET /v1/status; ages in seconds, sizes in bytes."""
    bundle, spool, uplink = service.encoder.bundle, service.spool, service.uplink.status
    oldest = _oldest_seconds(service)
    return {
        "service": "edge",
        "version": aeic.__version__,
        "source_id": service.settings.source_id,
        "bundle": {"name": bundle.name, "fingerprint": bundle.fingerprint, "digest": bundle.digest.hex()},
        "rates": [{"number": r.number, "name": r.name, "bpp": r.bpp} for r in bundle.rates],
        "default_rate": _default_rate(service),
        "provider": service.encoder.analysis.provider,
        "warnings": warnings(service),
        "encoding": {"pending": service.queue.pending, "workers": service.queue.workers},
        "received": {
            "frames": spool.received_pictures,
            "bytes": spool.received_bytes,
            "max_frames": service.settings.received_max_frames,
            "max_bytes": service.settings.received_max_bytes,
            "problem": service.deferred_encoder.problem or None,
        },
        "originals": {
            "frames": 0 if service.ring is None else len(service.ring),
            "bytes": 0 if service.ring is None else service.ring.bytes,
            "max_bytes": service.settings.originals_max_bytes,
            "failures": 0 if service.ring is None else service.ring.failures,
        },
        "spool": {
            "frames": spool.pending_frames,
            "bytes": spool.pending_bytes,
            "max_bytes": spool.limits.max_bytes,
            "full_policy": spool.limits.full_policy,
            "oldest_seconds": None if oldest is None else round(oldest, 3),
            "unreadable_frames": spool.unreadable,
            "damaged_files": spool.damaged_files(),
            "verified": spool.verified.value,
            "problem": spool.problem or None,
        },
        "uplink": {
            "cloud": service.settings.cloud_address,
            "state": uplink.state,
            "detail": uplink.detail,
            "since_unix": round(uplink.since, 3),
            "last_ack_unix": None if uplink.last_ack is None else round(uplink.last_ack, 3),
            "failures_in_a_row": uplink.failures_in_a_row,
        },
        "sources": [source.as_dict() for source in service.sources],
        "tasks": [dataclasses.asdict(task) for task in service.supervisor.tasks],
        "staging": None if service.trial.staging is None else dataclasses.asdict(service.trial.staging.state),
        "stopping": service.stopping.is_set(),
    }


def warnings(service: EdgeService) -> list[str]:
    """What an operator should look at although pictures are accepted."""
    analysis, entropy = service.encoder.analysis, service.encoder.gpu_entropy
    reasons = {"analysis": analysis.reason, "entropy model": entropy.reason if entropy is not None else ""}
    return [
        f"the CPU computes the {part}: {reason}; check the GPU and its driver, then restart the service"
        for part, reason in reasons.items()
        if reason
    ]


def refresh_gauges(service: EdgeService) -> None:
    """Set the gauges that are not set when their value changes, and add what the GPU has counted."""
    metrics, spool = service.metrics, service.spool
    if service.encoder.gpu_entropy is not None:
        tally = service.encoder.gpu_entropy.take_tally()
        metrics.entropy_frames.labels("device").inc(tally.device)
        metrics.entropy_frames.labels("cpu").inc(tally.cpu)
        metrics.entropy_checks.inc(tally.checked)
        metrics.entropy_mismatches.inc(tally.mismatches)
    metrics.queue_frames.set(service.queue.pending)
    for name, budget in service.budgets.items():
        metrics.budget.labels(name).set(budget.held)
        metrics.budget_limit.labels(name).set(budget.limit)
    metrics.received_frames.set(spool.received_pictures)
    metrics.received_bytes.set(spool.received_bytes)
    if service.ring is not None:
        metrics.originals.set(len(service.ring))
        metrics.originals_bytes.set(service.ring.bytes)
    metrics.spool_frames.set(spool.pending_frames)
    metrics.spool_bytes.set(spool.pending_bytes)
    metrics.unreadable.set(spool.unreadable)
    metrics.verified.set(spool.verified in (Verified.OK, Verified.REPAIRED))
    metrics.default_rate.set(_default_rate(service))
    with contextlib.suppress(OSError):  # the folder is gone; /readyz says so
        disk = shutil.disk_usage(service.settings.data_dir)
        metrics.disk_free.set(disk.free)
        metrics.disk_size.set(disk.total)
    metrics.certificate_expiry.clear()
    for name, expiry in service.certificates.expiry_seconds().items():
        metrics.certificate_expiry.labels(name).set(expiry)
    for source in service.sources:
        metrics.source_up.labels(source.name).set(source.state in ("up", "ended"))
        if (age := source.last_picture_age_seconds) is not None:
            metrics.source_age_seconds.labels(source.name).set(age)
    oldest = _oldest_seconds(service)
    if oldest is not None:
        metrics.oldest_seconds.set(oldest)


def _default_rate(service: EdgeService) -> int:
    return service.link_adaptation.rate if service.link_adaptation else service.encoder.bundle.default_rate


def _oldest_seconds(service: EdgeService) -> float | None:
    """None while the spool cannot be read: then the rest is reported all the same."""
    try:
        return service.spool.oldest_age_seconds()
    except SpoolError:
        return None
