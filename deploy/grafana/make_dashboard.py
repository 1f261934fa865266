"""Writes dashboards/aeic.json: `python deploy/grafana/make_dashboard.py [--check]`.

The panels are in dashboard_rows/, a module a row. This file lays them out as Grafana imports them.

tests/cloud/test_ops.py checks that the committed file is this program's output, that every metric in it exists, and
that alerts and panels link to each other. tests/ops runs every query against a real Prometheus.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dashboard_panels import Panel
from dashboard_rows import ROWS

TARGET = Path(__file__).parent / "dashboards" / "aeic.json"
WIDTH, HEIGHT, COLUMNS = 8, 7, 3
UID = "aeic"


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
