"""The rows of the dashboard, from top to bottom; a module each."""

from __future__ import annotations

from dashboard_panels import Panel

from dashboard_rows import cameras, decoding, edges, end_to_end, hosts, ingest, overview, service, sources

ROWS: list[tuple[str, list[Panel]]] = [
    ("Overview", overview.PANELS),
    ("End to end", end_to_end.PANELS),
    ("Edges", edges.PANELS),
    ("Cameras and folders", cameras.PANELS),
    ("Sources in the cloud", sources.PANELS),
    ("Ingest", ingest.PANELS),
    ("Decoding", decoding.PANELS),
    ("Service", service.PANELS),
    ("Hosts", hosts.PANELS),
]
