"""Writes dashboards/aeic.json: `python deploy/grafana/make_dashboard.py [--check]`. Panels are lines of this file.

tests/cloud/test_ops.py checks that the committed file is this program's output, that every metric in it exists, and
that alerts and panels link to each other. tests/ops runs every query against a real Prometheus.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "dashboards" / "aeic.json"
WIDTH, HEIGHT, COLUMNS = 8, 7, 3
UID = "aeic"

WINDOWS = ("5m", "1h", "6h", "3d")  # of the recording rules in deploy/prometheus/rules.yml

Query = tuple[str, str]  # PromQL, legend

# Matchers that the variables of the dashboard add to a query, by the names of its metrics.
MATCHERS = (
    (re.compile(r"\b(aeic_cloud_source_\w+_seconds)\b(?:{(.*?)})?"), 'tenant=~"$tenant", source=~"$source"'),
    (re.compile(r"\b(aeic_(?:cloud|edge)_\w+|process_\w+|up)\b(?:{(.*?)})?"), 'instance=~"$instance"'),
)


@dataclass(frozen=True)
class Panel:
    """One panel. ``alerts`` have a link to it, and it has links to their runbooks.

    ``needs`` names what must be there for the panel to have data: ``torch``, or the edge's ``sources`` or ``tls``.
    """

    title: str
    unit: str
    queries: list[Query]
    description: str
    alerts: tuple[str, ...] = ()
    number: bool = False
    needs: str = ""

    @property
    def id(self) -> int:
        """Derived from the title, so that a link keeps leading to this panel when others are added."""
        return zlib.crc32(self.title.encode()) % 10**6

    def selected(self) -> list[Query]:
        """The queries, limited by the variables of the dashboard."""
        return [(_select(query), legend) for query, legend in self.queries]


def _select(query: str) -> str:
    for names, matcher in MATCHERS:

        def add(found: re.Match[str], matcher: str = matcher) -> str:
            own = f", {found[2]}" if found[2] else ""
            return f"{found[1]}{{{matcher}{own}}}"

        query = names.sub(add, query)
    return query


def quantiles(metric: str, extra: str = "", only: tuple[float, ...] = (0.5, 0.95, 0.99)) -> list[Query]:
    """Median, 95th and 99th percentile of a classic histogram, or ``only`` some of them."""
    by = f"le{', ' + extra if extra else ''}"
    legend = f" {{{{{extra}}}}}" if extra else ""
    rate = f"sum by ({by}) (rate({metric}_bucket[2m]))"
    return [(f"histogram_quantile({q}, {rate})", f"p{round(100 * q)}{legend}") for q in only]


def rate(metric: str, label: str, text: str = "") -> list[Query]:
    """Events a second by one label."""
    return [(f"sum by ({label}) (rate({metric}[2m]))", text or f"{{{{{label}}}}}")]


ROWS: list[tuple[str, list[Panel]]] = [
    (
        "Overview",
        [
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
                [
                    (
                        f"histogram_quantile({q}, sum by (le) (rate(aeic_cloud_end_to_end_seconds_bucket[5m])))",
                        f"p{round(100 * q)}",
                    )
                    for q in (0.5, 0.95, 0.99)
                ],
                "From the capture of a picture, or from its arrival where the capture is unknown, to its picture in the"
                " cloud. The objective is 99 % within 5 s.",
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
        ],
    ),
    (
        "End to end",
        [
            Panel(
                "Capture to available",
                "s",
                quantiles("aeic_cloud_end_to_end_seconds"),
                "From the capture of a picture, or from its arrival where the capture is unknown, to its picture in the"
                " cloud.",
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
                "The share of frames that missed the objective of 5 s.",
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
        ],
    ),
    (
        "Edges",
        [
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
                "Time of a frame in each stage. `ship` is the time from sending to the acknowledgement, so it shows the"
                " link.",
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
                "How full the spool of each edge is. At 1, AEIC_EDGE_SPOOL_FULL_POLICY decides what happens to new"
                " pictures.",
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
                "Originals that wait",
                "short",
                [("aeic_edge_received_frames", "{{instance}}")],
                "Pictures posted with wait=received that are not encoded yet.",
            ),
            Panel(
                "Originals that failed",
                "none",
                [("sum by (instance) (increase(aeic_edge_failed_total[15m]))", "{{instance}}")],
                "Accepted pictures that could not be encoded. The log of the edge has the reasons.",
                alerts=("AeicEdgeCannotEncode",),
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
                "Parts of an edge that failed and were started again.",
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
        ],
    ),
    (
        "Cameras and folders",
        [
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
            Panel(
                "Silent",
                "s",
                [("aeic_cloud_source_silent_seconds", "{{tenant}} {{source}}")],
                "In the cloud: time since the last frame of each source, also of those behind NAT.",
            ),
        ],
    ),
    (
        "Ingest",
        [
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
        ],
    ),
    (
        "Decoding",
        [
            Panel(
                "Pictures",
                "ops",
                rate("aeic_cloud_decodes_total", "result"),
                "Decodes by result. `failed` frames are in quarantine.",
                alerts=("AeicFramesQuarantined",),
            ),
            Panel(
                "Pixels",
                "none",
                [("sum(rate(aeic_cloud_pixels_total[2m]))", "pixels a second")],
                "Pixels of finished pictures a second.",
            ),
            Panel(
                "Waiting",
                "none",
                [("sum by (stage) (aeic_cloud_waiting_frames)", "before {{stage}}")],
                "Frames that this worker holds, by the stage that they wait for.",
            ),
            Panel(
                "Wait before entropy decoding",
                "s",
                quantiles("aeic_cloud_queue_seconds"),
                "High if the workers cannot keep up.",
            ),
            Panel("Entropy decoding", "s", quantiles("aeic_cloud_entropy_seconds"), "One frame."),
            Panel(
                "Differences in entropy decoding",
                "none",
                [("sum by (instance) (aeic_cloud_entropy_mismatches_total)", "{{instance}}")],
                "Frames that a GPU decoded differently from the CPU, since the start. Should always be 0.",
                alerts=("AeicEntropyMismatch",),
            ),
            Panel(
                "Wait for the device",
                "s",
                quantiles("aeic_cloud_device_wait_seconds"),
                "High if the device is the bottleneck.",
            ),
            Panel("Synthesis of a batch", "s", quantiles("aeic_cloud_synthesis_seconds"), "One batch on the device."),
            Panel(
                "Batch",
                "none",
                [
                    (
                        "sum(rate(aeic_cloud_batch_pieces_sum[2m])) / sum(rate(aeic_cloud_batch_pieces_count[2m]))",
                        "pictures or tiles",
                    )
                ],
                "Mean number of pictures or tiles in a batch.",
            ),
            Panel(
                "Fill of a batch",
                "percentunit",
                quantiles("aeic_cloud_batch_fill_ratio"),
                "Pixels of a batch as a share of AEIC_CLOUD_MAX_BATCH_PIXELS.",
            ),
            Panel(
                "Batches halved, out of memory",
                "ops",
                [("sum(rate(aeic_cloud_batch_splits_total[2m]))", "halved")],
                "Batches that did not fit into the memory of the device.",
                alerts=("AeicOutOfMemory",),
            ),
            Panel(
                "Writing pictures",
                "s",
                quantiles("aeic_cloud_image_encode_seconds"),
                "Encoding a picture as PNG, WebP, JPEG or AVIF.",
            ),
            Panel(
                "Decoder processes lost",
                "ops",
                [("sum(rate(aeic_cloud_decoder_deaths_total[5m]))", "lost")],
                "Decoder processes that ended while they had a batch.",
                alerts=("AeicDecoderDies",),
            ),
            Panel(
                "Bundles in memory",
                "bytes",
                [("aeic_cloud_models_bytes", "{{instance}}")],
                "Limited by AEIC_CLOUD_MODEL_BYTES.",
            ),
            Panel(
                "GPU memory",
                "bytes",
                [("sum by (kind) (aeic_cloud_gpu_memory_bytes)", "{{kind}}")],
                "GPU memory that torch holds; 0 on a CPU.",
            ),
            Panel(
                "Synthesis by part, p95",
                "s",
                quantiles("aeic_cloud_synthesis_part_seconds", "part", only=(0.95,)),
                "Time of each part of the network. Empty with ONNX Runtime.",
                needs="torch",
            ),
        ],
    ),
    (
        "Service",
        [
            Panel(
                "Requests",
                "ops",
                rate("aeic_cloud_http_requests_total", "code"),
                "HTTP requests at the cloud by class of status. 5xx counts against the objective.",
                alerts=("AeicHttpErrorsFast", "AeicHttpErrorsSlow"),
            ),
            Panel(
                "Requests by route, p95",
                "s",
                quantiles("aeic_cloud_http_request_seconds", "route", only=(0.95,)),
                "95th percentile. Includes the time that a client asked to wait.",
            ),
            Panel(
                "Turned away",
                "ops",
                rate("aeic_cloud_sheds_total", "reason"),
                "Work refused, by reason. `store` means that the store cannot be written.",
                alerts=("AeicShedding", "AeicStoreCannotWrite"),
            ),
            Panel(
                "Cache hits",
                "percentunit",
                [
                    (
                        'sum(rate(aeic_cloud_cache_requests_total{result="hit"}[5m]))'
                        " / sum(rate(aeic_cloud_cache_requests_total[5m]))",
                        "hits",
                    )
                ],
                "The share of pictures that were not decoded again.",
            ),
            Panel(
                "Cache",
                "bytes",
                [
                    ("aeic_cloud_cache_bytes", "{{instance}}"),
                    ("aeic_cloud_cache_limit_bytes", "limit"),
                ],
                "Pictures on disk, and AEIC_CLOUD_CACHE_BYTES.",
            ),
            Panel(
                "Pictures not cached",
                "none",
                [("sum by (instance) (increase(aeic_cloud_cache_errors_total[15m]))", "{{instance}}")],
                "Pictures that could not be written to the cache. They are decoded again at the next request.",
                alerts=("AeicCacheCannotWrite",),
            ),
            Panel(
                "Store",
                "none",
                [("sum by (state) (aeic_cloud_stored_frames)", "{{state}}")],
                "All frames of the store by state.",
            ),
            Panel(
                "Maintenance",
                "none",
                [
                    ("sum by (step) (increase(aeic_cloud_maintenance_errors_total[15m]))", "{{step}} failed"),
                    ("aeic_cloud_clock_refused", "{{instance}} clock refused"),
                ],
                "Failed steps of maintenance, and whether retention has stopped because the clock is implausible.",
                alerts=("AeicMaintenanceFails", "AeicClockRefused"),
            ),
            Panel(
                "Parts of the service that began again",
                "none",
                [("sum by (task) (increase(aeic_cloud_task_restarts_total[15m]))", "{{task}}")],
                "Should be 0. The log has the causes.",
                alerts=("AeicCloudTaskFails",),
            ),
        ],
    ),
    (
        "Hosts",
        [
            Panel(
                "Disk of the cloud",
                "bytes",
                [
                    ("aeic_cloud_disk_free_bytes", "{{instance}} {{folder}} free"),
                    ("aeic_cloud_disk_size_bytes", "{{instance}} {{folder}} size"),
                ],
                "The disks under the data folder and under a cache folder. PostgreSQL's disk is not among them.",
                alerts=("AeicCloudDiskLow", "AeicCloudDiskFills"),
            ),
            Panel(
                "Certificates, time left",
                "s",
                [
                    ("aeic_cloud_certificate_expiry_timestamp_seconds - time()", "{{instance}} {{file}}"),
                    ("aeic_edge_certificate_expiry_timestamp_seconds - time()", "{{instance}} {{file}}"),
                ],
                "Until a certificate file expires, by the setting that names it. Empty without TLS.",
                alerts=("AeicCertificateExpires", "AeicCertificateExpiresSoon"),
                needs="tls",
            ),
            Panel(
                "Memory of the services",
                "bytes",
                [('process_resident_memory_bytes{job=~"edge|cloud"}', "{{job}} {{instance}}")],
                "Resident memory of the service's own process, without its decoder processes.",
            ),
            Panel(
                "CPU of the services",
                "percentunit",
                [('rate(process_cpu_seconds_total{job=~"edge|cloud"}[2m])', "{{job}} {{instance}}")],
                "1 is one core. Without the decoder processes.",
            ),
            Panel(
                "Open files",
                "percentunit",
                [('process_open_fds{job=~"edge|cloud"} / process_max_fds', "{{job}} {{instance}}")],
                "Open files and connections as a share of the limit.",
            ),
        ],
    ),
]


def panels() -> list[Panel]:
    """All panels, in order."""
    return [panel for _, members in ROWS for panel in members]


def queries(wanted: Callable[[Panel], bool] = lambda panel: True) -> list[str]:
    """Every PromQL expression of the wanted panels, as in the dashboard."""
    return [query for panel in panels() if wanted(panel) for query, _ in panel.selected()]


def filled_in(query: str, values: Mapping[str, str]) -> str:
    """The query as Grafana sends it: with the values of its variables, or with all where there is none."""
    return re.sub(r"\$(\w+)", lambda found: values.get(found[1], ".*"), query)


def panel_link(panel: Panel) -> str:
    """The path in Grafana that shows only this panel."""
    return f"/d/{UID}?viewPanel={panel.id}"


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A variable that takes its values from Prometheus; all of them by default."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _runbook(alert: str) -> dict[str, Any]:
    url = f"${{docs}}/how-to/alerts.html#{alert.lower()}"
    return {"title": f"Runbook: {alert}", "url": url, "targetBlank": True}


def _drawn(panel: Panel, x: int, y: int) -> dict[str, Any]:
    look: dict[str, Any]
    if panel.number:
        look = {
            "type": "stat",
            "options": {
                "textMode": "value_and_name",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            },
        }
    else:
        look = {
            "type": "timeseries",
            "options": {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
                "tooltip": {"mode": "multi", "sort": "desc"},
            },
        }
    return {
        "id": panel.id,
        **look,
        "title": panel.title,
        "description": panel.description,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": panel.unit} | ({} if panel.number else {"min": 0}),
            "overrides": [],
        },
        "links": [_runbook(alert) for alert in panel.alerts],
        "targets": [
            {
                "refId": chr(65 + number),
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "expr": query,
                "legendFormat": legend,
            }
            for number, (query, legend) in enumerate(panel.selected())
        ],
    }


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    drawn: list[dict[str, Any]] = []
    top = 0
    for row, members in ROWS:
        grid = {"x": 0, "y": top, "w": WIDTH * COLUMNS, "h": 1}
        id = zlib.crc32(f"row {row}".encode()) % 10**6
        drawn.append({"id": id, "type": "row", "title": row, "collapsed": False, "gridPos": grid, "panels": []})
        top += 1
        for index, panel in enumerate(members):
            drawn.append(_drawn(panel, index % COLUMNS * WIDTH, top + index // COLUMNS * HEIGHT))
        top += HEIGHT * -(-len(members) // COLUMNS)
    return {
        "uid": UID,
        "title": "AEIC: edge to cloud",
        "tags": ["aeic"],
        "schemaVersion": 39,
        "version": 1,
        "refresh": "10s",
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                _variable("instance", "Instance", 'label_values(up{job=~"edge|cloud"}, instance)'),
                _variable("tenant", "Tenant", "label_values(aeic_cloud_source_silent_seconds, tenant)"),
                _variable(
                    "source", "Source", 'label_values(aeic_cloud_source_silent_seconds{tenant=~"$tenant"}, source)'
                ),
                {
                    "name": "docs",
                    "label": "Address of the documentation",
                    "type": "textbox",
                    "query": "http://127.0.0.1:8000",
                    "current": {"text": "http://127.0.0.1:8000", "value": "http://127.0.0.1:8000"},
                },
            ]
        },
        "time": {"from": "now-1h", "to": "now"},
        "panels": drawn,
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
