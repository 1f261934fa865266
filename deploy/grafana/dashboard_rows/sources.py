"""What the cloud knows about each source and box, including those behind NAT that Prometheus cannot reach."""

from __future__ import annotations

from dashboard_panels import Panel

PANELS = [
    Panel(
        "Silent",
        "s",
        [("aeic_cloud_source_silent_seconds", "{{tenant}} {{source}}")],
        "Time since the last frame of each source. With tokens, AEIC_CLOUD_METRICS_SOURCES has to be set for this row.",
    ),
    Panel(
        "Backlog by source",
        "none",
        [("aeic_cloud_source_backlog_frames", "{{tenant}} {{source}} at the {{at}}")],
        "Frames that wait: at the edge to be sent, as the box reports while it is connected, and at the cloud to be"
        " decoded.",
        alerts=("AeicSourceBacklogGrows",),
    ),
    Panel(
        "Boxes that are well",
        "bool",
        [("aeic_cloud_source_healthy", "{{tenant}} {{source}}")],
        "1 while a connected box reports no problem, 0 while it does. Boxes that are not connected have no value.",
        alerts=("AeicSourceUnhealthy",),
    ),
    Panel(
        "Boxes by software",
        "none",
        [("count by (software) (aeic_cloud_source_info)", "{{software}}")],
        "Connected boxes by their program and its version.",
    ),
]
