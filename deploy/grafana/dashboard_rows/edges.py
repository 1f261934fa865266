"""The boxes that Prometheus can reach."""

from __future__ import annotations

from dashboard_panels import Panel, quantiles, rate

PANELS = [
    Panel(
        "Pictures encoded",
        "ops",
        [("sum by (instance) (rate(aeic_edge_frame_bytes_count[2m]))", "{{instance}}")],
        "Frames that each edge has made.",
    ),
    Panel(
        "Encoding by stage, p95",
        "s",
        quantiles("aeic_edge_stage_seconds", "stage", only=(0.95,)),
        "Time of a frame in each stage. `ship` is the time from sending to the acknowledgement, so it shows the link.",
    ),
    Panel(
        "Oldest unacknowledged frame",
        "s",
        [("aeic_edge_oldest_unacknowledged_seconds", "{{instance}}")],
        "Grows while the link or the cloud is down.",
        alerts=("AeicEdgeBehind",),
    ),
    Panel(
        "Spool",
        "percentunit",
        [("aeic_edge_spool_bytes / aeic_edge_spool_max_bytes", "{{instance}}")],
        "How full the spool of each edge is. At 1, AEIC_EDGE_SPOOL_FULL_POLICY decides what happens to new pictures.",
        alerts=("AeicEdgeSpoolFull",),
    ),
    Panel(
        "Frames lost",
        "none",
        [
            ("sum by (instance, reason) (increase(aeic_edge_dropped_total[5m]))", "{{instance}} {{reason}}"),
            ("aeic_edge_spool_unreadable_frames", "{{instance}} unreadable since start"),
        ],
        "Frames dropped by a limit, and frames that damage of the disk has destroyed. Should always be 0.",
        alerts=("AeicEdgeDrops", "AeicEdgeSpoolDamaged"),
    ),
    Panel(
        "Received pictures that wait",
        "short",
        [("aeic_edge_received_frames", "{{instance}}")],
        "Pictures posted with wait=received that are not encoded yet.",
    ),
    Panel(
        "Received pictures that failed",
        "none",
        [("sum by (instance) (increase(aeic_edge_failed_total[15m]))", "{{instance}}")],
        "Accepted pictures that could not be encoded. The log of the edge has the reasons.",
        alerts=("AeicEdgeCannotEncode",),
    ),
    Panel(
        "Pictures that lost their reader",
        "none",
        [
            (
                "sum by (instance, reason) (increase(aeic_edge_picture_process_losses_total[15m]))",
                "{{instance}} {{reason}}",
            )
        ],
        "Picture files refused because the process that read them crashed, took too long or needed too much memory.",
    ),
    Panel(
        "Uplink",
        "bool",
        [("aeic_edge_uplink_connected", "{{instance}}")],
        "1 while the stream to the cloud is open.",
        alerts=("AeicEdgeDisconnected",),
    ),
    Panel(
        "Ended streams by cause",
        "none",
        [
            (
                "sum by (instance, cause) (increase(aeic_edge_uplink_failures_total[15m]))",
                "{{instance}} {{cause}}",
            )
        ],
        "Why streams to the cloud ended in the last quarter of an hour.",
        alerts=("AeicEdgeUnauthorised", "AeicEdgeModelMismatch"),
    ),
    Panel(
        "Task restarts",
        "none",
        [("sum by (instance, task) (increase(aeic_edge_task_restarts_total[15m]))", "{{instance}} {{task}}")],
        "Parts of an edge that failed and were restarted.",
        alerts=("AeicEdgeTaskFails",),
    ),
    Panel(
        "Answers of the cloud",
        "ops",
        rate("aeic_edge_acks_total", "status"),
        "Frames that the cloud has stored, had already, or has rejected.",
    ),
    Panel(
        "Frame size by rate point",
        "bytes",
        quantiles("aeic_edge_frame_bytes", "rate", only=(0.5,)),
        "Median bytes of a frame.",
    ),
    Panel(
        "Bytes on the stream",
        "Bps",
        rate("aeic_edge_stream_bytes_total", "direction"),
        "gRPC messages in both directions, without HTTP/2, TLS and TCP.",
    ),
    Panel(
        "Answer to a POST, by status",
        "s",
        quantiles("aeic_edge_request_seconds", "status", only=(0.95,)),
        "95th percentile of the time until a client has its answer.",
    ),
    Panel(
        "Disk of the edges",
        "bytes",
        [
            ("aeic_edge_disk_free_bytes", "{{instance}} free"),
            ("aeic_edge_spool_max_bytes - aeic_edge_spool_bytes", "{{instance}} the spool may still take"),
        ],
        "If less is free than the spool may still take, the disk is full before the spool reaches its limit.",
        alerts=("AeicEdgeDiskLow",),
    ),
]
