"""A real Prometheus scrapes both running services: every panel has data, every metric that is named exists.

Needs Debian's ``prometheus``; `make test-ops` installs it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aeic_tools.demo import local_services
from aeic_tools.demo.client import RequestFailed, request
from aeic_tools.demo.local_services import Pair
from tests.support import certificates
from tests.support.dashboards import RULES, dashboard_module, metrics_in
from tests.support.roots import DEPLOY, EXAMPLES

SECONDS = 60.0
WITH_TLS = not certificates.MISSING

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus (Debian: prometheus): make test-ops installs it"
)


class Prometheus:
    """A server on a free port with this repository's rules, evaluated every second."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
        config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / "rules.yml").write_text(RULES.read_text().replace("interval: 30s", "interval: 1s"))
        self.url = f"http://127.0.0.1:{port}"
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=log)

    def wait_ready(self) -> None:
        """Until it answers queries."""
        end = time.monotonic() + SECONDS
        while True:
            try:
                request(f"{self.url}/-/ready")
                return
            except (OSError, RequestFailed):
                assert self.process.poll() is None and time.monotonic() < end, "prometheus did not start"
                time.sleep(0.1)

    def ask(self, path: str, **asked: str) -> Any:
        """``data`` of an API answer."""
        query = "?" + urllib.parse.urlencode(asked) if asked else ""
        return json.loads(request(f"{self.url}/api/v1/{path}{query}"))["data"]

    def values(self, query: str) -> list[float]:
        """What a query gives now, without NaN."""
        found = [float(one["value"][1]) for one in self.ask("query", query=query)["result"]]
        return [value for value in found if not math.isnan(value)]


@pytest.fixture(scope="module")
def prometheus(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus and both services, under traffic as long as the tests run. With TLS, and with a watched folder."""
    folder = tmp_path_factory.mktemp("ops")
    with _services(folder, tiny_bundle) as pair:
        targets = {"edge": pair.edge.http, "cloud": pair.cloud.http}
        server = Prometheus(folder, {name: url.removeprefix("http://") for name, url in targets.items()})
        over = threading.Event()
        sending = threading.Thread(target=_traffic, args=(pair, folder / "watched", over))
        sending.start()
        try:
            server.wait_ready()
            yield server
        finally:
            over.set()
            sending.join()
            server.process.terminate()
            server.process.wait(20)


@contextlib.contextmanager
def _services(folder: Path, bundle: Path) -> Iterator[Pair]:
    (folder / "watched").mkdir()
    from_folder = {"AEIC_EDGE_WATCH_DIR": str(folder / "watched"), "AEIC_EDGE_WATCH_SETTLE_SECONDS": "0.2"}
    to_cloud, own = {}, {}
    if WITH_TLS:
        authority = certificates.authority(folder, "ca", days=90)
        chain = certificates.certificate(folder, "cloud", "ca", days=60)
        own = {"AEIC_CLOUD_GRPC_TLS_CERT": str(chain), "AEIC_CLOUD_GRPC_TLS_KEY": str(chain.with_suffix(".key"))}
        to_cloud = {"AEIC_EDGE_TLS": "1", "AEIC_EDGE_TLS_CA": str(authority)}
    with (
        local_services.cloud(folder, folder, bundle, 0, **own) as cloud,
        local_services.edge(folder, folder, cloud.addresses["grpc"], bundle, 0, **from_folder, **to_cloud) as edge,
    ):
        yield Pair(edge, cloud)


def _traffic(pair: Pair, watched: Path, over: threading.Event) -> None:
    """What callers do: pictures in, images out of cache and decoder, a decode at once, a question about nothing."""
    names = itertools.cycle(("owl.jpg", "coffee.jpg", "flower.jpg"))
    rates = itertools.cycle("01")
    while not over.wait(0.2):
        body = (EXAMPLES / next(names)).read_bytes()
        id = json.loads(request(f"{pair.edge.http}/v1/frames?rate={next(rates)}&wait=delivered", body))["id"]
        shutil.copy(EXAMPLES / "owl.jpg", watched / f"{id}.jpg")
        request(f"{pair.cloud.http}/v1/frames/{id}/image?wait=20")
        request(f"{pair.cloud.http}/v1/frames/{id}/image?format=webp&width=64")
        frame = request(f"{pair.cloud.http}/v1/frames/{id}/bitstream")
        request(f"{pair.cloud.http}/v1/decode", frame)
        for path in ("/v1/frames/00000000-0000-7000-8000-000000000000", "/v1/frames?limit=0"):
            try:
                request(pair.cloud.http + path)
            except RequestFailed as refused:
                assert refused.status in (400, 404)


def _until_none_is_left(wanted: set[str], there: Any) -> set[str]:
    """What of ``wanted`` is still not there when the time is over."""
    end, left = time.monotonic() + SECONDS, set(wanted)
    while left and time.monotonic() < end:
        left = {one for one in left if not there(one)}
        time.sleep(0.3)
    return left


def test_every_panel_has_data(prometheus: Prometheus) -> None:
    """As Grafana asks: with all instances and sources at first, then with the ones that its variables offer."""
    module = dashboard_module()
    there = {"", "sources", *(("tls",) if WITH_TLS else ())}  # torch is not: the decoder is ONNX Runtime's
    queries = set(module.queries(lambda panel: panel.needs in there))
    assert len(queries) > 80
    empty = _until_none_is_left({module.filled_in(query, {}) for query in queries}, prometheus.values)
    print(json.dumps({"bench": "ops", "queries": len(queries), "without_data": len(empty)}))
    assert empty == set()
    offered = {
        one["name"]: one["query"]["query"] for one in module.dashboard()["templating"]["list"] if one["type"] == "query"
    }
    assert set(offered) == {"instance", "tenant", "source"}
    chosen: dict[str, set[str]] = {}
    for name, query in offered.items():
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
        assert found and found[2] == name
        series = prometheus.ask("query", query=module.filled_in(found[1], {}))["result"]
        chosen[name] = {one["metric"].get(name, "") for one in series}
    assert len(chosen["instance"]) == 2 and chosen["source"]
    for source in chosen["source"]:
        silent = module.filled_in('aeic_cloud_source_silent_seconds{source=~"$source"}', {"source": re.escape(source)})
        assert len(prometheus.values(silent)) == 1


def test_a_query_of_one_instance_has_no_data_of_others(prometheus: Prometheus) -> None:
    module = dashboard_module()
    (up,) = (panel for panel in module.panels() if panel.title == "Up")
    query, _ = up.selected()[0]
    assert len(prometheus.values(module.filled_in(query, {}))) == 2
    assert len(prometheus.values(module.filled_in(query, {"instance": "127.0.0.1:1"}))) == 0


def test_every_metric_that_is_named_exists(prometheus: Prometheus) -> None:
    named = metrics_in(RULES.read_text()) | metrics_in(" ".join(dashboard_module().queries()))
    assert len(named) > 30
    missing = _until_none_is_left(named, lambda name: prometheus.values(f"count({name})"))
    assert missing == set()


def test_every_rule_is_evaluated_and_no_alert_fires(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]

    written = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules()} == {rule.get("alert") or rule["record"] for rule in written}
    assert _until_none_is_left({"ok"}, lambda _: all(rule["health"] == "ok" for rule in rules())) == set()
    firing = [rule["name"] for rule in rules() if rule["type"] == "alerting" and rule["state"] == "firing"]
    assert firing == []  # the services are well, and so say the rules
    recorded = {rule["record"] for rule in written if "record" in rule}
    assert _until_none_is_left(recorded, prometheus.values) == set()


def test_both_targets_are_up_and_their_pages_parse(prometheus: Prometheus) -> None:
    targets = prometheus.ask("targets")["activeTargets"]
    assert {one["labels"]["job"]: one["health"] for one in targets} == {"edge": "up", "cloud": "up"}
    for one in targets:
        page = request(one["scrapeUrl"])
        checked = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, timeout=60)
        output = checked.stdout + checked.stderr
        assert checked.returncode == 0, output.decode()
