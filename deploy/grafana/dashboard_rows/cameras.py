"""What each camera and folder of an edge delivers, for edges that Prometheus can reach."""

from __future__ import annotations

from dashboard_panels import Panel

PANELS = [
    Panel(
        "Delivers",
        "bool",
        [("aeic_edge_source_up", "{{instance}} {{source}}")],
        "1 while a camera delivers or a folder is scanned.",
        alerts=("AeicEdgeCameraDown",),
        needs="sources",
    ),
    Panel(
        "Time since the last picture",
        "s",
        [("aeic_edge_source_last_picture_age_seconds", "{{instance}} {{source}}")],
        "At the edge, by source. A motion filter makes pauses normal.",
        needs="sources",
    ),
    Panel(
        "Pictures by outcome",
        "ops",
        [
            (
                "sum by (source, outcome) (rate(aeic_edge_source_frames_total[5m]))",
                "{{source}} {{outcome}}",
            )
        ],
        "`busy` means that the encoder was too slow, `still` that the motion filter saw nothing new.",
        needs="sources",
    ),
]
