"""What an operator looks at first: the numbers that say whether all is well."""

from __future__ import annotations

from dashboard_panels import Panel, quantiles

PANELS = [
    Panel(
        "Frames a second",
        "none",
        [('sum(rate(aeic_cloud_frames_total{status="stored"}[5m]))', "stored")],
        "New frames that the cloud has stored, over five minutes.",
        number=True,
    ),
    Panel(
        "Capture to picture, 5 minutes",
        "s",
        quantiles("aeic_cloud_end_to_end_seconds", where='since="capture"', over="5m"),
        "Time from capture until the picture is available in the cloud, where the time of capture is known. The"
        " objective is 99 % within 5 s.",
        number=True,
    ),
    Panel(
        "Error budget left",
        "percentunit",
        [
            ("1 - aeic:late_frames:ratio_rate3d / 0.01", "late frames, 3 days"),
            ("1 - aeic:http_errors:ratio_rate3d / 0.001", "HTTP errors, 3 days"),
        ],
        "The share of the errors allowed in three days that has not been used. Below 0 the objective is missed."
        " Covers all instances.",
        number=True,
    ),
    Panel(
        "Oldest frame at an edge",
        "s",
        [("max(aeic_edge_oldest_unacknowledged_seconds)", "oldest")],
        "The age of the oldest frame that an edge has not delivered, of the edges that Prometheus can reach.",
        number=True,
    ),
    Panel(
        "Edges connected",
        "none",
        [("sum(aeic_cloud_streams)", "edges")],
        "Edges with an open stream to the cloud, including those that Prometheus cannot reach.",
        number=True,
    ),
    Panel(
        "Silent for longest",
        "s",
        [("topk(10, max by (source) (aeic_cloud_source_silent_seconds))", "{{source}}")],
        "The ten sources whose last frame is the oldest. With tokens, the cloud exports this only if"
        " AEIC_CLOUD_METRICS_SOURCES is set.",
        alerts=("AeicSourceSilent",),
    ),
    Panel(
        "Waiting and failed",
        "none",
        [('sum by (state) (aeic_cloud_stored_frames{state=~"received|failed"})', "{{state}}")],
        "Frames that wait to be decoded, and frames in quarantine.",
        alerts=("AeicBacklogGrows",),
    ),
]
