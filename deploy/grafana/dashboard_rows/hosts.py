"""Disks, certificates and processes."""

from __future__ import annotations

from dashboard_panels import Panel

PANELS = [
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
]
