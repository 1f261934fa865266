"""Time from the capture of a picture until it is available in the cloud, against the objectives."""

from __future__ import annotations

from dashboard_panels import WINDOWS, Panel, quantiles

PANELS = [
    Panel(
        "Capture to available",
        "s",
        quantiles("aeic_cloud_end_to_end_seconds", where='since="capture"'),
        "Time from capture until the picture is available in the cloud, for pictures whose sender or edge named the"
        " time of capture.",
    ),
    Panel(
        "Arrival to available, capture unknown",
        "s",
        quantiles("aeic_cloud_end_to_end_seconds", where='since="arrival"'),
        "Time from arrival in the cloud until the picture is available, where the time of capture is unknown or"
        " only that of a file."
        " The transfer from the camera to the cloud is not included.",
    ),
    Panel(
        "Frames later than 5 s",
        "percentunit",
        [
            (
                '1 - sum(rate(aeic_cloud_end_to_end_seconds_bucket{le="5.0"}[5m]))'
                " / sum(rate(aeic_cloud_end_to_end_seconds_count[5m]))",
                "late",
            )
        ],
        "The share of frames that missed the objective of 5 s, from the capture or else from the arrival.",
        alerts=("AeicFramesLateFast", "AeicFramesLateSlow"),
    ),
    Panel(
        "Frame size",
        "bytes",
        quantiles("aeic_cloud_frame_bytes"),
        "Bytes of the frames that the cloud has stored.",
    ),
    Panel(
        "Budget burnt by late frames (1 is just sustainable)",
        "none",
        [(f"aeic:late_frames:ratio_rate{window} / 0.01", window) for window in WINDOWS],
        "How fast the error budget of late frames is used, by the length of the window. At 1, it lasts exactly"
        " 30 days. Covers all instances.",
        alerts=("AeicFramesLateBudget",),
    ),
    Panel(
        "Budget burnt by HTTP errors (1 is just sustainable)",
        "none",
        [(f"aeic:http_errors:ratio_rate{window} / 0.001", window) for window in WINDOWS],
        "How fast the error budget of HTTP errors is used, by the length of the window. Covers all instances.",
        alerts=("AeicHttpErrorsBudget",),
    ),
    Panel(
        "Up",
        "bool",
        [("up", "{{job}} {{instance}}"), ("aeic_cloud_ready", "{{instance}} ready")],
        "1 while Prometheus reaches a service, and while a cloud takes requests.",
        alerts=("AeicCloudNotReady", "AeicEdgeDown"),
    ),
]
