"""The cloud's requests, cache, store and maintenance."""

from __future__ import annotations

from dashboard_panels import Panel, quantiles, rate

PANELS = [
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
]
