"""Rules and dashboard name only metrics that exist; with promtool at hand, every alert fires once and is quiet once."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Histogram

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


def boundaries(name: str) -> set[float]:
    """The bucket boundaries of a histogram of either service."""
    for metrics in (Metrics(), EdgeMetrics()):
        for made in vars(metrics).values():
            if isinstance(made, Histogram) and made._name == name:
                return set(made._upper_bounds)
    raise AssertionError(f"there is no histogram {name}")


def test_histograms_have_a_boundary_at_every_objective() -> None:
    page = (ROOT / "docs" / "how-to" / "alerts.md").read_text().partition("## Objectives")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| `(\w+)` \| ([^|]*) \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for name, text in rows:
        for boundary in re.findall(r"[\d.]+", text):
            assert float(boundary) in boundaries(name), f"{name} has no boundary at {boundary} s"
    bounded = {name for name, text in rows if text.strip()}
    objectives = set(re.findall(r"(\w+_seconds)_bucket", RULES.read_text()))
    assert objectives <= bounded  # every histogram that an alert rests on is an objective of the page


def test_the_dashboard_is_what_its_program_writes_and_asks_for_what_exists() -> None:
    module = dashboard_module()
    assert json.loads(module.TARGET.read_text()) == module.dashboard(), "run deploy/grafana/make_dashboard.py"
    assert metrics_in(" ".join(module.queries())) <= known_names()
    drawn = module.dashboard()
    assert [one["expr"] for panel in drawn["panels"] for one in panel.get("targets", [])] == module.queries()


def _lost(given: Any, read: Any, path: str = "") -> Iterator[str]:
    """The parts of ``given`` that ``read`` does not have, or has differently."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            yield from _lost(value, read[key], f"{path}.{key}") if key in read else (f"{path}.{key}",)
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for number, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from _lost(one, other, f"{path}[{number}]")
    elif given != read:
        yield path


def _read_by_grafanas_types(given: dict[str, Any]) -> Any:
    sdk = "grafana_foundation_sdk"
    models = pytest.importorskip(f"{sdk}.models.dashboard", reason="comes with the extra dev: make install")
    importlib.import_module(f"{sdk}.cog.plugins").register_default_plugins()
    encoder = importlib.import_module(f"{sdk}.cog.encoder").JSONEncoder
    return json.loads(json.dumps(models.Dashboard.from_json(given), cls=encoder))


def test_grafanas_own_types_know_every_part_of_the_dashboard() -> None:
    """They are generated from Grafana's schema, and drop what it does not have."""
    drawn = dashboard_module().dashboard()
    assert list(_lost(drawn, _read_by_grafanas_types(drawn))) == []
    panel = next(one for one in drawn["panels"] if one["type"] != "row")
    panel["options"]["textmode"] = panel["titel"] = panel["targets"][0]["legendformat"] = "x"
    lost = sorted(path.rpartition(".")[2] for path in _lost(drawn, _read_by_grafanas_types(drawn)))
    assert lost == ["legendformat", "textmode", "titel"], "a mistake is seen"


def test_the_dashboard_has_the_structure_that_grafana_reads() -> None:
    """What Grafana's types leave open: places, ids, variables and descriptions."""
    module = dashboard_module()
    drawn = module.dashboard()
    assert set(drawn) == {
        "uid", "title", "tags", "schemaVersion", "version", "refresh", "templating", "time", "panels",
    }  # fmt: skip
    assert re.fullmatch(r"[\w-]{1,40}", drawn["uid"])
    variables = {one["name"]: one for one in drawn["templating"]["list"]}
    assert set(variables) == {"datasource", "instance", "tenant", "source", "docs"}
    assert variables["datasource"]["type"] == "datasource"  # the data source is chosen at the import
    source = {"type": "prometheus", "uid": "${datasource}"}
    for name in ("instance", "tenant", "source"):
        one = variables[name]
        assert one["type"] == "query" and one["datasource"] == source
        assert one["multi"] and one["includeAll"] and one["allValue"] == ".*"
        asked = metrics_in(one["query"]["query"])
        assert asked <= known_names() and (asked or "up{" in one["query"]["query"])
    panels = drawn["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert all(0 <= x < 24 for x, _ in cells) and not cells & taken, f"{panel['title']} covers another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["type"] in {"stat", "timeseries"} and panel["datasource"] == source
        assert panel["description"].endswith("."), f"{panel['title']} has no description"
        assert set(panel["fieldConfig"]) == {"defaults", "overrides"}
        assert [one["refId"] for one in panel["targets"]] == [chr(65 + n) for n in range(len(panel["targets"]))]
        assert all(one["datasource"] == source and one["expr"] for one in panel["targets"])
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels)))
    assert used == set(variables)  # none is undefined, none is without use


def test_every_query_can_be_limited_to_an_instance() -> None:
    module = dashboard_module()
    for query in module.queries():
        named = re.findall(r"\b(?:aeic_(?:cloud|edge)|process)_\w+|\bup\b", query)
        limited = re.findall(r"(\b(?:aeic_(?:cloud|edge)|process)_\w+|\bup)\{instance=~\"\$instance\"", query)
        assert named == limited, query
        assert "aeic:" in query or named  # a recording rule covers all instances


def test_alerts_and_panels_link_to_each_other() -> None:
    module = dashboard_module()
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    alerts = {rule["alert"]: rule["annotations"]["panel"] for rule in rules if "alert" in rule}
    shown = {alert: panel for panel in module.panels() for alert in panel.alerts}
    assert shown.keys() == alerts.keys()
    for alert, link in alerts.items():
        assert link == module.panel_link(shown[alert]), alert
    for panel, drawn in zip(
        module.panels(), [one for one in module.dashboard()["panels"] if one["type"] != "row"], strict=True
    ):
        assert drawn["id"] == panel.id
        assert [link["url"] for link in drawn["links"]] == [
            f"${{docs}}/how-to/alerts.html#{alert.lower()}" for alert in panel.alerts
        ]


def test_rules_name_only_what_exists() -> None:
    text = RULES.read_text()
    assert metrics_in(text) and metrics_in(text) <= known_names()
    asked = re.findall(r'(\w+)_bucket\{[^}]*le="([^"]+)"', text + " ".join(dashboard_module().queries()))
    assert len(asked) >= 6
    for name, boundary in asked:
        assert float(boundary) in boundaries(name), f"{name} has no boundary at {boundary}"
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
def test_the_configuration_of_the_guide_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(global:.*?)```", (ROOT / "docs" / "how-to" / "cloud.md").read_text(), re.S)
    (tmp_path / "prometheus.yml").write_text(text)
    shutil.copy(RULES, tmp_path)
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = {job["job_name"] for job in yaml.safe_load(text)["scrape_configs"]}
    assert set(re.findall(r'job="(\w+)"', RULES.read_text())) <= jobs


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_promtool() -> None:
    for command in (["check", "rules", "rules.yml"], ["test", "rules", *(path.name for path in TESTS)]):
        done = subprocess.run(["promtool", *command], cwd=RULES.parent, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
