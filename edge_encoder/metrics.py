"""Every metric of the edge: name, unit and help, in one place. Base units; no frame ids as labels.

Buckets have a boundary at each objective of docs/how-to/alerts.md. The metrics ``process_*`` describe this process,
without the child processes that read its cameras and its picture files.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

STAGES = ("receive", "wait", "read", "analyse", "entropy", "spool", "ship")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
_BYTES = (256, 512, 1024, 1536, 2048, 3072, 4096, 8192, 16384, 65536, 262144)


class Metrics:
    """The registry and its metrics; one instance per service, so that services in one process do not share numbers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)
        self.info = Gauge(
            "aeic_edge_info",
            "Always 1; the labels say what is running.",
            ["version", "bundle", "fingerprint", "digest", "provider"],
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "aeic_edge_stage_seconds",
            "Time that a frame spends in a stage: read, analyse, entropy, spool (to commit), ship (sent to"
            " acknowledged); with wait=received also receive (to commit) and wait (until it is encoded).",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.request_seconds = Histogram(
            "aeic_edge_request_seconds",
            "Time from a POST's headers to its answer, by status and what it waited for.",
            ["status", "wait"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.frame_bytes = Histogram(
            "aeic_edge_frame_bytes",
            "Whole .aeic files made, by rate point.",
            ["rate"],
            buckets=_BYTES,
            registry=registry,
        )
        self.entropy_frames = Counter(
            "aeic_edge_entropy_frames_total",
            "Runs of the entropy model, if a GPU is used for it: on the device or the CPU.",
            ["where"],
            registry=registry,
        )
        self.entropy_checks = Counter(
            "aeic_edge_entropy_checks_total", "Runs on the GPU that were checked on the CPU.", registry=registry
        )
        self.entropy_mismatches = Counter(
            "aeic_edge_entropy_mismatches_total",
            "Differences between the entropy model on the GPU and on the CPU.",
            registry=registry,
        )
        self.picture_bytes = Counter("aeic_edge_picture_bytes_total", "Picture files taken in.", registry=registry)
        self.pictures_lost = Counter(
            "aeic_edge_picture_process_losses_total",
            "Picture files refused because the process that read them was lost: crash, deadline, memory.",
            ["reason"],
            registry=registry,
        )
        self.folder_files = Counter(
            "aeic_edge_folder_files_total",
            "Files of the watched folders: taken, refused.",
            ["outcome"],
            registry=registry,
        )
        self.camera_frames = Counter(
            "aeic_edge_camera_frames_total",
            "Frames of the cameras: taken, still (nothing new), busy (no room), refused.",
            ["outcome"],
            registry=registry,
        )
        self.source_frames = Counter(
            "aeic_edge_source_frames_total",
            "Pictures of each source (camera, folder or topic): taken, still, busy, refused, unreadable.",
            ["source", "outcome"],
            registry=registry,
        )
        self.source_up = Gauge(
            "aeic_edge_source_up",
            "1 while a camera delivers, a folder is scanned or a topic is subscribed, and after a video file has been"
            " read.",
            ["source"],
            registry=registry,
        )
        self.source_age_seconds = Gauge(
            "aeic_edge_source_last_picture_age_seconds",
            "Time since the last picture of a source; absent before the first.",
            ["source"],
            registry=registry,
        )
        self.queue_frames = Gauge("aeic_edge_queue_frames", "Pictures being encoded or waiting.", registry=registry)
        self.budget = Gauge(
            "aeic_edge_budget_used",
            "What requests hold of each budget now: connections, body_bytes, pixels.",
            ["budget"],
            registry=registry,
        )
        self.budget_limit = Gauge("aeic_edge_budget_limit", "The limit of each budget.", ["budget"], registry=registry)
        self.received_frames = Gauge(
            "aeic_edge_received_frames", "Received pictures that wait to be encoded.", registry=registry
        )
        self.received_bytes = Gauge("aeic_edge_received_bytes", "Bytes of these received pictures.", registry=registry)
        self.failed = Counter(
            "aeic_edge_failed_total",
            "Received pictures that could not be encoded; the log has the reasons.",
            registry=registry,
        )
        self.originals = Gauge("aeic_edge_originals", "Originals kept after their frames were made.", registry=registry)
        self.originals_bytes = Gauge("aeic_edge_originals_bytes", "Bytes of these originals.", registry=registry)
        self.requests = Counter(
            "aeic_edge_requests_total",
            "Requests of the cloud: answered, the reason of the refusal, or ignored (refused a minute ago).",
            ["outcome"],
            registry=registry,
        )
        self.spool_frames = Gauge("aeic_edge_spool_frames", "Frames not yet acknowledged.", registry=registry)
        self.spool_bytes = Gauge(
            "aeic_edge_spool_bytes", "Bytes of these frames, as counted against the limit.", registry=registry
        )
        self.spool_max_bytes = Gauge(
            "aeic_edge_spool_max_bytes", "Limit on the bytes of these frames.", registry=registry
        )
        self.oldest_seconds = Gauge(
            "aeic_edge_oldest_unacknowledged_seconds",
            "Age of the oldest frame not acknowledged, or received picture not encoded.",
            registry=registry,
        )
        self.default_rate = Gauge(
            "aeic_edge_default_rate", "Rate point of pictures whose sender asks for none.", registry=registry
        )
        self.dropped = Counter(
            "aeic_edge_dropped_total", "Frames dropped, by reason: full, age, damaged.", ["reason"], registry=registry
        )
        self.verified = Gauge(
            "aeic_edge_spool_verified",
            "1 once the whole spool was checked since start, and repaired if it was damaged.",
            registry=registry,
        )
        self.unreadable = Gauge(
            "aeic_edge_spool_unreadable_frames",
            "Frames lost to damage of the spool since start.",
            registry=registry,
        )
        self.acks = Counter(
            "aeic_edge_acks_total", "Answers of the cloud: stored, duplicate, rejected.", ["status"], registry=registry
        )
        self.stream_bytes = Counter(
            "aeic_edge_stream_bytes_total",
            "gRPC messages with their 5-byte prefix, without HTTP/2, TLS and TCP; direction up or down.",
            ["direction"],
            registry=registry,
        )
        self.task_restarts = Counter(
            "aeic_edge_task_restarts_total",
            "Tasks of the service that failed and were restarted: uplink, originals, housekeeping, and each source"
            " by its name.",
            ["task"],
            registry=registry,
        )
        self.in_flight = Gauge("aeic_edge_in_flight_frames", "Sent and not yet acknowledged.", registry=registry)
        self.connected = Gauge(
            "aeic_edge_uplink_connected",
            "1 while the stream to the cloud is open. Absent without AEIC_EDGE_CLOUD_ADDRESS.",
            registry=registry,
        )
        self.reconnects = Counter(
            "aeic_edge_uplink_failures_total", "Streams that ended, by cause.", ["cause"], registry=registry
        )
        self.disk_free = Gauge(
            "aeic_edge_disk_free_bytes", "Free bytes of the disk under the data folder.", registry=registry
        )
        self.disk_size = Gauge("aeic_edge_disk_size_bytes", "Size of this disk.", registry=registry)
        self.certificate_expiry = Gauge(
            "aeic_edge_certificate_expiry_timestamp_seconds",
            "Unix time at which a certificate file expires, by the setting that names it.",
            ["file"],
            registry=registry,
        )
        # At 0 from the start, so that the first event is an increase for Prometheus.
        for reason in ("full", "age", "damaged"):
            self.dropped.labels(reason)
        for reason in ("crash", "deadline", "memory"):
            self.pictures_lost.labels(reason)
        for outcome in ("answered", "gone", "forbidden", "over-budget", "expired", "unsupported", "ignored"):
            self.requests.labels(outcome)
        for cause in ("closed", "unreachable", "stalled", "tls-failed", "unauthorised", "refused", "model-mismatch"):
            self.reconnects.labels(cause)
