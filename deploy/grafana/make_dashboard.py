"""Writes dashboards/aeic.json: `python deploy/grafana/make_dashboard.py [--check]`. Panels are lines of this file.

tests/cloud/test_ops.py checks that the committed file is this program's output and that every metric in it exists.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "dashboards" / "aeic.json"
WIDTH, HEIGHT, COLUMNS = 8, 7, 3

WINDOWS = ("5m", "1h", "6h", "3d")  # of the recording rules in deploy/prometheus/rules.yml

Query = tuple[str, str]  # PromQL, legend


def quantiles(metric: str, extra: str = "") -> list[Query]:
    """Median, 95th and 99th percentile of a classic histogram."""
    by = f"le{', ' + extra if extra else ''}"
    legend = f" {{{{{extra}}}}}" if extra else ""
    rate = f"sum by ({by}) (rate({metric}_bucket[2m]))"
    return [(f"histogram_quantile({q}, {rate})", f"p{round(100 * q)}{legend}") for q in (0.5, 0.95, 0.99)]


def rate(metric: str, label: str, text: str = "") -> list[Query]:
    """Events a second by one label."""
    return [(f"sum by ({label}) (rate({metric}[2m]))", text or f"{{{{{label}}}}}")]


ONLY_WITH_TORCH = {"Synthesis by part, p95"}
"""Panels whose data ONNX Runtime, which has no parts, cannot give."""

NUMBERS = {
    "Frames a second",
    "Capture to picture, 5 minutes",
    "Error budget left",
    "Oldest frame at an edge",
    "Edges connected",
}
"""Panels that show the present value, large. They are the first row."""

# (row, [(title, unit, queries)])
ROWS: list[tuple[str, list[tuple[str, str, list[Query]]]]] = [
    (
        "Overview",
        [
            ("Frames a second", "none", [('sum(rate(aeic_cloud_frames_total{status="stored"}[5m]))', "stored")]),
            (
                "Capture to picture, 5 minutes",
                "s",
                [
                    (
                        f"histogram_quantile({q}, sum by (le) (rate(aeic_cloud_end_to_end_seconds_bucket[5m])))",
                        f"p{round(100 * q)}",
                    )
                    for q in (0.5, 0.95, 0.99)
                ],
            ),
            (
                "Error budget left",
                "percentunit",
                [
                    ("1 - aeic:late_frames:ratio_rate3d / 0.01", "late frames, 3 days"),
                    ("1 - aeic:http_errors:ratio_rate3d / 0.001", "HTTP errors, 3 days"),
                ],
            ),
            ("Oldest frame at an edge", "s", [("max(aeic_edge_oldest_unacknowledged_seconds)", "oldest")]),
            ("Edges connected", "none", [("sum(aeic_cloud_streams)", "edges")]),
            (
                "Silent for longest",
                "s",
                [("topk(10, max by (source) (aeic_cloud_source_silent_seconds))", "{{source}}")],
            ),
            (
                "Waiting and failed",
                "none",
                [('sum by (state) (aeic_cloud_stored_frames{state=~"received|failed"})', "{{state}}")],
            ),
        ],
    ),
    (
        "End to end",
        [
            ("Capture to available", "s", quantiles("aeic_cloud_end_to_end_seconds")),
            (
                "Frames later than 5 s",
                "percentunit",
                [
                    (
                        '1 - sum(rate(aeic_cloud_end_to_end_seconds_bucket{le="5.0"}[5m]))'
                        " / sum(rate(aeic_cloud_end_to_end_seconds_count[5m]))",
                        "late",
                    )
                ],
            ),
            ("Frame size", "bytes", quantiles("aeic_cloud_frame_bytes")),
            (
                "Budget burnt by late frames (1 is just sustainable)",
                "none",
                [(f"aeic:late_frames:ratio_rate{window} / 0.01", window) for window in WINDOWS],
            ),
            (
                "Budget burnt by HTTP errors (1 is just sustainable)",
                "none",
                [(f"aeic:http_errors:ratio_rate{window} / 0.001", window) for window in WINDOWS],
            ),
            ("Up", "bool", [("up", "{{job}} {{instance}}"), ("aeic_cloud_ready", "{{instance}} ready")]),
        ],
    ),
    (
        "Edges",
        [
            (
                "Pictures encoded",
                "ops",
                [("sum by (instance) (rate(aeic_edge_frame_bytes_count[2m]))", "{{instance}}")],
            ),
            ("Encoding by stage, p95", "s", quantiles("aeic_edge_stage_seconds", "stage")[1:2]),
            ("Oldest unacknowledged frame", "s", [("aeic_edge_oldest_unacknowledged_seconds", "{{instance}}")]),
            ("Spool", "percentunit", [("aeic_edge_spool_bytes / aeic_edge_spool_max_bytes", "{{instance}}")]),
            ("Originals that wait", "short", [("aeic_edge_received_frames", "{{instance}}")]),
            ("Uplink", "bool", [("aeic_edge_uplink_connected", "{{instance}}")]),
            ("Answers of the cloud", "ops", rate("aeic_edge_acks_total", "status")),
            ("Frame size by rate point", "bytes", quantiles("aeic_edge_frame_bytes", "rate")[:1]),
            ("Bytes on the stream", "Bps", rate("aeic_edge_stream_bytes_total", "direction")),
            ("Answer to a POST, by status", "s", quantiles("aeic_edge_request_seconds", "status")[1:2]),
        ],
    ),
    (
        "Ingest",
        [
            ("Frames offered", "ops", rate("aeic_cloud_frames_total", "status")),
            ("Streams", "none", [("sum(aeic_cloud_streams)", "open")]),
            ("Commit", "s", quantiles("aeic_cloud_commit_seconds")),
            ("Frames in a commit", "none", quantiles("aeic_cloud_commit_frames")),
        ],
    ),
    (
        "Decoding",
        [
            ("Pictures", "ops", rate("aeic_cloud_decodes_total", "result")),
            ("Pixels", "none", [("sum(rate(aeic_cloud_pixels_total[2m]))", "pixels a second")]),
            ("Waiting", "none", [("sum by (stage) (aeic_cloud_waiting_frames)", "before {{stage}}")]),
            ("Wait before entropy decoding", "s", quantiles("aeic_cloud_queue_seconds")),
            ("Entropy decoding", "s", quantiles("aeic_cloud_entropy_seconds")),
            ("Wait for the device", "s", quantiles("aeic_cloud_device_wait_seconds")),
            ("Synthesis of a batch", "s", quantiles("aeic_cloud_synthesis_seconds")),
            (
                "Batch",
                "none",
                [
                    (
                        "sum(rate(aeic_cloud_batch_pieces_sum[2m])) / sum(rate(aeic_cloud_batch_pieces_count[2m]))",
                        "pictures or tiles",
                    )
                ],
            ),
            ("Fill of a batch", "percentunit", quantiles("aeic_cloud_batch_fill_ratio")),
            ("Batches halved, out of memory", "ops", [("sum(rate(aeic_cloud_batch_splits_total[2m]))", "halved")]),
            ("Writing pictures", "s", quantiles("aeic_cloud_image_encode_seconds")),
            ("Decoder processes lost", "ops", [("sum(rate(aeic_cloud_decoder_deaths_total[5m]))", "lost")]),
            ("Bundles in memory", "bytes", [("aeic_cloud_models_bytes", "{{instance}}")]),
            ("GPU memory", "bytes", [("sum by (kind) (aeic_cloud_gpu_memory_bytes)", "{{kind}}")]),
            ("Synthesis by part, p95", "s", quantiles("aeic_cloud_synthesis_part_seconds", "part")[1:2]),
        ],
    ),
    (
        "Service",
        [
            ("Requests", "ops", rate("aeic_cloud_http_requests_total", "code")),
            ("Requests by route, p95", "s", quantiles("aeic_cloud_http_request_seconds", "route")[1:2]),
            ("Turned away", "ops", rate("aeic_cloud_sheds_total", "reason")),
            (
                "Cache hits",
                "percentunit",
                [
                    (
                        'sum(rate(aeic_cloud_cache_requests_total{result="hit"}[5m]))'
                        " / sum(rate(aeic_cloud_cache_requests_total[5m]))",
                        "hits",
                    )
                ],
            ),
            ("Cache", "bytes", [("aeic_cloud_cache_bytes", "{{instance}}"), ("aeic_cloud_cache_limit_bytes", "limit")]),
            ("Store", "none", [("sum by (state) (aeic_cloud_stored_frames)", "{{state}}")]),
        ],
    ),
]


def queries(without: Iterable[str] = ()) -> list[str]:
    """Every PromQL expression of the dashboard, but those of the panels ``without``."""
    asked = [asked for _, panels in ROWS for title, _, asked in panels if title not in set(without)]
    return [query for part in asked for query, _ in part]


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row, members in ROWS:
        grid = {"x": 0, "y": top, "w": WIDTH * COLUMNS, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "gridPos": grid})
        top += 1
        for index, (title, unit, asked) in enumerate(members):
            x, y = index % COLUMNS * WIDTH, top + index // COLUMNS * HEIGHT
            targets = [
                {"refId": chr(65 + n), "expr": query, "legendFormat": legend} for n, (query, legend) in enumerate(asked)
            ]
            panels.append(
                {
                    "id": len(panels) + 1,
                    "type": "stat" if title in NUMBERS else "timeseries",
                    "title": title,
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
                    "fieldConfig": {
                        "defaults": {"unit": unit} | ({} if title in NUMBERS else {"min": 0}),
                        "overrides": [],
                    },
                    "options": {"textMode": "value_and_name"}
                    if title in NUMBERS
                    else {"legend": {"displayMode": "list", "placement": "bottom"}},
                    "targets": targets,
                }
            )
        top += HEIGHT * -(-len(members) // COLUMNS)
    return {
        "uid": "aeic",
        "title": "AEIC: edge to cloud",
        "tags": ["aeic"],
        "schemaVersion": 39,
        "version": 1,
        "refresh": "10s",
        "templating": {
            "list": [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "time": {"from": "now-1h", "to": "now"},
        "panels": panels,
    }


def main() -> int:
    """Write the file, or with --check compare it."""
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        return int(TARGET.read_text() != text)
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
