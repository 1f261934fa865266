"""Frames on their way into the store of the cloud."""

from __future__ import annotations

from dashboard_panels import Panel, quantiles, rate

PANELS = [
    Panel(
        "Frames offered",
        "ops",
        rate("aeic_cloud_frames_total", "status"),
        "Frames that edges have sent: stored, duplicate or rejected.",
        alerts=("AeicFramesRejected",),
    ),
    Panel("Streams", "none", [("sum(aeic_cloud_streams)", "open")], "Open streams of edges."),
    Panel(
        "Boxes with the same source id",
        "none",
        [("sum(increase(aeic_cloud_source_conflicts_total[15m]))", "conflicts")],
        "Streams on which a second box sent under the source id of another.",
        alerts=("AeicSourceConflict",),
    ),
    Panel("Commit", "s", quantiles("aeic_cloud_commit_seconds"), "One commit of received frames, with fsync."),
    Panel("Frames in a commit", "none", quantiles("aeic_cloud_commit_frames"), "More under load."),
]
