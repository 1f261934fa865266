"""Rules and dashboard name only metrics that exist; with promtool at hand, every alert fires once and is quiet once."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from cloud_decoder.metrics import Metrics
from edge_encoder.metrics import Metrics as EdgeMetrics
from tests.support.dashboards import RULES, dashboard_module, metrics_in
from tests.support.roots import DEPLOY, ROOT

TESTS = sorted((DEPLOY / "prometheus").glob("rules*_test.yml"))


def known_names() -> set[str]:
    names = set()
    for registry in (Metrics().registry, EdgeMetrics().registry):
        for metric in registry.collect():
            ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(metric.type, ("",))
            names |= {metric.name + end for end in ends}
    return names


def test_the_dashboard_is_what_its_program_writes_and_asks_for_what_exists() -> None:
    module = dashboard_module()
    assert json.loads(module.TARGET.read_text()) == module.dashboard(), "run deploy/grafana/make_dashboard.py"
    assert metrics_in(" ".join(module.queries())) <= known_names()


def test_rules_name_only_what_exists() -> None:
    text = RULES.read_text()
    assert metrics_in(text) and metrics_in(text) <= known_names()
    buckets = {
        sample.labels["le"] for m in Metrics().registry.collect() for sample in m.samples if "le" in sample.labels
    }
    assert set(re.findall(r'le="([^"]+)"', text)) <= buckets
    alerts = re.findall(r"- alert: (\w+)", text)
    tested = "".join(path.read_text() for path in TESTS)
    for alert in alerts:
        cases = re.findall(rf"alertname: {alert}\n\s+exp_alerts:( \[\])?", tested)
        assert "" in cases and " []" in cases, f"{alert} needs a case that fires it and one that keeps it quiet"


def test_every_alert_links_to_its_section() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}
    page = (ROOT / "docs" / "how-to" / "alerts.md").read_text()
    sections = dict(re.findall(r"^### (\w+)\n\n\*\*(Page|Ticket)\.\*\*", page, re.MULTILINE))
    assert sections.keys() == alerts.keys()
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook"] == f"docs/how-to/alerts.md#{name.lower()}"
        assert sections[name].lower() == rule["labels"]["severity"], name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_promtool() -> None:
    for command in (["check", "rules", "rules.yml"], ["test", "rules", *(path.name for path in TESTS)]):
        done = subprocess.run(["promtool", *command], cwd=RULES.parent, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
