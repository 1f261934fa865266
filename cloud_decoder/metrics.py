"""All metrics of the cloud: name, unit and help text. Rules and dashboards in deploy/ are tested against this list.

One registry per service, so that tests can run several in one process. Buckets have a boundary at each objective of
docs/how-to/alerts.md. The metrics ``process_*`` describe this process, without the decoder's child processes.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

STAGE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
END_TO_END_SECONDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600)
MODEL_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
BATCH_ITEMS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
FRAME_BYTES = (256, 512, 1024, 2048, 4096, 8192, 16384, 65536, 262144, 1048576)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing here reads


class Metrics:
    """The instruments. Label values come from short fixed lists and hold no ids; sources are limited in number."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"aeic_cloud_{name}", text, labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"aeic_cloud_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"aeic_cloud_{name}", text, labels, registry=registry)

        self.frames = counter("frames_total", "Frames offered by edges: stored, duplicate or rejected.", ("status",))
        self.frame_bytes = histogram("frame_bytes", "Size of stored frames.", FRAME_BYTES)
        self.commit_seconds = histogram("commit_seconds", "One commit of received frames.", STAGE_SECONDS)
        self.commit_frames = histogram("commit_frames", "Frames in one commit.", BATCH_ITEMS)
        self.streams = gauge("streams", "Edges connected now.")
        self.source_conflicts = counter(
            "source_conflicts_total", "Streams on which a second box sent under the source id of another."
        )

        self.picture_requests = counter(
            "picture_requests_total",
            "Requests for more of a picture that ended: answered, or the reason of the refusal.",
            ("outcome",),
        )

        self.queue_seconds = histogram(
            "queue_seconds", "Time that a frame waits before entropy decoding.", STAGE_SECONDS
        )
        self.entropy_seconds = histogram("entropy_seconds", "Entropy decoding of one frame.", STAGE_SECONDS)
        self.device_wait_seconds = histogram(
            "device_wait_seconds", "Time that decoded latents wait for the device.", STAGE_SECONDS
        )
        self.synthesis_seconds = histogram("synthesis_seconds", "One batch on the device.", STAGE_SECONDS)
        self.part_seconds = histogram(
            "synthesis_part_seconds",
            "One batch by part of the network (g_s, unet, vae); only with torch.",
            STAGE_SECONDS,
            ("part",),
        )
        self.image_seconds = histogram("image_encode_seconds", "Encoding one picture as a file.", STAGE_SECONDS)
        self.end_to_end_seconds = histogram(
            "end_to_end_seconds",
            "Until the picture is available: since its capture, or since its arrival where the capture is unknown or"
            " the frame answers a request about an earlier picture.",
            END_TO_END_SECONDS,
            ("since",),
        )
        self.batch_items = histogram("batch_pieces", "Pictures or tiles in one batch.", BATCH_ITEMS)
        self.batch_fill = histogram(
            "batch_fill_ratio", "Pixels of one batch as a share of the limit.", (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
        )
        self.pixels = counter("pixels_total", "Pixels of finished pictures.")
        self.decodes = counter("decodes_total", "Pictures asked for: done, failed, cancelled or expired.", ("result",))
        self.sheds = counter("sheds_total", "Work refused, by reason.", ("reason",))
        self.splits = counter("batch_splits_total", "Batches halved because memory ran out.")
        self.decoder_deaths = counter("decoder_deaths_total", "Decoder processes lost while they had a batch.")
        self.lost_leases = counter(
            "lost_leases_total",
            "Results of this worker that were discarded because another worker had claimed the frame.",
        )
        self.model_load_seconds = histogram("model_load_seconds", "Loading a bundle on demand.", MODEL_SECONDS)
        self.models_bytes = gauge("models_bytes", "Size of the bundles in memory.")
        self.gpu_memory = gauge("gpu_memory_bytes", "GPU memory held by torch after the last batch.", ("kind",))
        self.recomputed = counter(
            "recomputed_pictures_total",
            "Pictures that were not finite in half precision and were made again in float32.",
        )
        self.entropy_frames = counter(
            "entropy_frames_total",
            "Frames that a decoder process entropy-decoded: on the device or the CPU.",
            ("where",),
        )
        self.entropy_checks = counter("entropy_checks_total", "Frames of the device that were checked on the CPU.")
        self.entropy_mismatches = counter(
            "entropy_mismatches_total", "Differences between entropy decoding on the device and on the CPU."
        )
        self.waiting = gauge("waiting_frames", "Frames held by this worker, by stage.", ("stage",))

        self.requests = counter(
            "http_requests_total", "HTTP requests, by route and class of status.", ("route", "code")
        )
        self.request_seconds = histogram("http_request_seconds", "HTTP requests.", STAGE_SECONDS, ("route",))
        self.budget = gauge("budget_used", "What requests hold of each budget now.", ("budget",))
        self.budget_limit = gauge("budget_limit", "The limit of each budget.", ("budget",))
        self.cache = counter("cache_requests_total", "Look-ups of pictures: hit or miss.", ("result",))
        self.cache_errors = counter("cache_errors_total", "Pictures that could not be written to the cache.")
        self.cache_bytes = gauge("cache_bytes", "Bytes of pictures on disk.")
        self.cache_limit_bytes = gauge("cache_limit_bytes", "Bytes of pictures allowed on disk.")
        self.stored = gauge("stored_frames", "Frames in the store, by state.", ("state",))
        self.clock_refused = gauge("clock_refused", "1 while the clock is implausible, so that retention has stopped.")
        self.retention_frames = counter(
            "retention_frames_total",
            "Frames that retention has marked, that clients have deleted, and whose bitstream was removed.",
            ("step",),
        )
        self.deleted_bytes = gauge("deleted_bytes", "Bytes of bitstreams that are marked and can be brought back.")
        self.maintenance_errors = counter(
            "maintenance_errors_total",
            "Failed steps of maintenance: cache, clock, retention, events or check.",
            ("step",),
        )
        self.task_restarts = counter(
            "task_restarts_total", "Parts of the service that failed and were restarted.", ("task",)
        )
        self.source_silent = gauge(
            "source_silent_seconds",
            "Time since the last frame of a source; covers the latest AEIC_CLOUD_METRICS_SOURCES of the last week.",
            ("tenant", "source"),
        )
        self.source_backlog = gauge(
            "source_backlog_frames",
            "Frames of a source that wait: at the edge to be sent, as its box reports, or at the cloud to be decoded.",
            ("tenant", "source", "at"),
        )
        self.source_healthy = gauge(
            "source_healthy",
            "1 while a connected box reports no problem, 0 while it reports one; GET /v1/sources says which.",
            ("tenant", "source"),
        )
        self.source_info = gauge(
            "source_info", "Always 1; the program and version of a connected box.", ("tenant", "source", "software")
        )
        self.disk_free = gauge(
            "disk_free_bytes", "Free bytes of the disk under the data folder, and under a cache folder.", ("folder",)
        )
        self.disk_size = gauge("disk_size_bytes", "Size of these disks.", ("folder",))
        self.certificate_expiry = gauge(
            "certificate_expiry_timestamp_seconds",
            "Unix time at which a certificate file expires, by the setting that names it.",
            ("file",),
        )
        self.ready = gauge("ready", "1 while requests are taken.")
        self.info = gauge(
            "info",
            "Always 1; version, bundle, device and the runtime of the synthesis are the labels.",
            ("version", "bundle", "device", "runtime"),
        )
        for since in ("capture", "arrival"):
            self.end_to_end_seconds.labels(since)
        for status in ("stored", "duplicate", "rejected"):
            self.frames.labels(status)
        for outcome in ("answered", "gone", "forbidden", "over-budget", "expired", "unsupported"):
            self.picture_requests.labels(outcome)
        for result in ("done", "failed", "cancelled", "expired"):
            self.decodes.labels(result)
        for reason in ("queue_full", "too_many_waiters", "calls", "draining", "device", "store"):
            self.sheds.labels(reason)
        for stage in ("entropy", "device"):
            self.waiting.labels(stage)
        for part in ("g_s", "unet", "vae"):
            self.part_seconds.labels(part)
        for kind in ("allocated", "reserved"):
            self.gpu_memory.labels(kind)
        for result in ("hit", "miss"):
            self.cache.labels(result)
        for where in ("device", "cpu"):
            self.entropy_frames.labels(where)
        for step in ("marked", "removed", "deleted"):
            self.retention_frames.labels(step)
        for step in ("cache", "clock", "retention", "events", "check"):
            self.maintenance_errors.labels(step)
        for task in ("worker", "maintenance", "requests", "events", "queue"):
            self.task_restarts.labels(task)

    def count_events(self, counts: Mapping[str, int]) -> None:
        """Add what a decoder counted, by the names of cloud_decoder.inference.backend.COUNTS."""
        self.recomputed.inc(counts.get("recomputed", 0))
        self.entropy_frames.labels("device").inc(counts.get("entropy_device", 0))
        self.entropy_frames.labels("cpu").inc(counts.get("entropy_cpu", 0))
        self.entropy_checks.inc(counts.get("entropy_checked", 0))
        self.entropy_mismatches.inc(counts.get("entropy_mismatches", 0))
