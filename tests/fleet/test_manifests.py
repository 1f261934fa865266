"""deploy/k8s and deploy/kuberay as far as they can be checked without a cluster.

kubectl (Debian: kubernetes-client) renders them, Kubernetes' own schemas of three releases (kubernetes-validate) check
every object of its API. Objects of KEDA, Ray and the Prometheus operator have schemas of their own, which no package
brings: of them only what is named elsewhere is compared. Nothing here was applied to a cluster.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import aeic
from cloud_decoder.fleet.settings import FleetSettings
from cloud_decoder.settings import Settings
from cloud_decoder.store.schema import metadata
from tests.support.roots import DEPLOY, DOCS, ROOT

FOREIGN = {"ScaledObject", "TriggerAuthentication", "RayCluster", "Kustomization", "Component", "PodMonitor"}
RUN = {"Deployment", "Job", "StatefulSet"}
RELEASES = ("1.31", "1.34", "1.37")
PATCHES = {"gpu/worker.yaml", "ingress/allowed-hosts.yaml"}
GUIDE = DOCS / "how-to" / "kubernetes.md"


def written() -> list[dict[str, Any]]:
    """Every object, but the patches."""
    files = sorted([*DEPLOY.glob("k8s/*/*.yaml"), *DEPLOY.glob("kuberay/*.yaml")])
    whole = [path for path in files if f"{path.parent.name}/{path.name}" not in PATCHES]
    return [one for path in whole for one in yaml.safe_load_all(path.read_text())]


def rendered(folder: Path) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed (Debian: kubernetes-client; make test-fleet installs it)")
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def check(objects: list[dict[str, Any]]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (extra fleet)")
    for one in objects:
        if one["kind"] not in FOREIGN:
            for release in RELEASES:
                validate.validate(one, release, strict=True)


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [c for one in objects if one["kind"] in RUN for c in one["spec"]["template"]["spec"]["containers"]]


def test_every_object_fits_kubernetes_schemas() -> None:
    objects = written()
    assert {"Deployment", "Service", "Job", "NetworkPolicy", "PodDisruptionBudget", "ScaledObject", "RayCluster"} <= {
        one["kind"] for one in objects
    }
    check(objects)


@pytest.mark.parametrize("name", ["base", "gpu", "single"])
def test_the_bases_render(name: str) -> None:
    objects = rendered(DEPLOY / "k8s" / name)
    check(objects)
    assert all(one["metadata"].get("namespace") == "aeic" for one in objects if one["kind"] != "Namespace")
    for container in containers(objects):
        assert container["image"].endswith(f":{aeic.__version__}"), container["image"]
    if name != "single":
        (worker,) = (c for c in containers(objects) if c["name"] == "worker")
        assert ("nvidia.com/gpu" in worker["resources"]["limits"]) is (name == "gpu")


def test_a_single_node_needs_no_database_no_bucket_and_no_keda() -> None:
    objects = rendered(DEPLOY / "k8s" / "single")
    assert {one["kind"] for one in objects} == {
        "Namespace", "ServiceAccount", "ConfigMap", "Service", "StatefulSet", "NetworkPolicy",
    }  # fmt: skip
    values = next(one["data"] for one in objects if one["kind"] == "ConfigMap")
    settings = Settings(**_lower(values))
    assert not settings.database_url and not settings.cache_url and settings.role == "all"
    (cloud,) = (one for one in objects if one["kind"] == "StatefulSet")
    pod, (claim,) = cloud["spec"]["template"]["spec"], cloud["spec"]["volumeClaimTemplates"]
    (container,) = pod["containers"]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == str(settings.data_dir)
    assert values["AEIC_CLOUD_TOKENS_FILE"].rpartition("/")[0] == mounts["tokens"]
    size = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) << 30
    assert settings.cache_bytes + 2 * settings.retention_bytes < size  # marked frames take as many bytes again
    assert cloud["spec"]["replicas"] == 1 and "maxSurge" not in str(cloud["spec"].get("updateStrategy"))


@pytest.mark.parametrize("name", ["base", "gpu", "single"])
def test_the_overlay_of_the_guide_renders(name: str, tmp_path: Path) -> None:
    """The kustomization.yaml of docs/how-to/kubernetes.md: an own registry and name, Ingress and PodMonitor."""
    (text,) = re.findall(r"```yaml\n(apiVersion: kustomize.*?)```", GUIDE.read_text(), re.S)
    assert text.count("deploy/k8s/single") == 1
    here = os.path.relpath(DEPLOY / "k8s", tmp_path.resolve())
    text = text.replace("deploy/k8s/single", f"deploy/k8s/{name}").replace("../aeic/deploy/k8s", here)
    (tmp_path / "kustomization.yaml").write_text(text)
    objects = rendered(tmp_path)
    check(objects)
    if name == "single":
        assert {c["image"] for c in containers(objects)} == {f"registry.example/aeic-cloud:{aeic.__version__}"}
    ingresses = [one["spec"] for one in objects if one["kind"] == "Ingress"]
    hosts = {rule["host"] for spec in ingresses for rule in spec["rules"]}
    covered = {host for spec in ingresses for tls in spec["tls"] for host in tls["hosts"]}
    assert hosts == covered == {"pictures.example.org", "edges.example.org"}
    values = next(one["data"] for one in objects if one["kind"] == "ConfigMap")
    assert values["AEIC_CLOUD_ALLOWED_HOSTS"] == "pictures.example.org"
    (service,) = (one for one in objects if one["kind"] == "Service")
    ports = {port["name"] for port in service["spec"]["ports"]}
    for path in (path for spec in ingresses for rule in spec["rules"] for path in rule["http"]["paths"]):
        backend = path["backend"]["service"]
        assert backend["name"] == service["metadata"]["name"] and backend["port"]["name"] in ports
    (monitor,) = (one for one in objects if one["kind"] == "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["path"] == "/metrics"
    assert {"targetLabel": "job", "replacement": "cloud"} in endpoint["relabelings"]  # the rules ask for job="cloud"
    wanted = monitor["spec"]["selector"]["matchLabels"]
    for one in objects:
        if one["kind"] in {"Deployment", "StatefulSet"}:
            pod = one["spec"]["template"]
            assert wanted.items() <= pod["metadata"]["labels"].items()
            assert endpoint["port"] in {port["name"] for c in pod["spec"]["containers"] for port in c["ports"]}


def test_the_rules_become_an_object_as_the_guide_says() -> None:
    (block,) = (one for one in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.S) if "PrometheusRule" in one)
    made, _, applied = block.rpartition("|")
    assert applied.strip() == "kubectl apply --filename -"
    done = subprocess.run(["sh", "-c", made], cwd=ROOT, capture_output=True, text=True, check=True)
    rule = yaml.safe_load(done.stdout)
    assert rule["kind"] == "PrometheusRule" and rule["metadata"]["namespace"] == "aeic"
    assert rule["spec"] == yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())


def test_what_runs_is_probed_bounded_and_drains() -> None:
    for one in written():
        if one["kind"] not in {"Deployment", "StatefulSet"} or one["metadata"]["name"] == "aeic-controller":
            continue
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        (container,) = pod["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["path"] == ("/healthz" if probe == "livenessProbe" else "/readyz")
        assert container["resources"]["limits"]["memory"] and container["lifecycle"]["preStop"]
        for values in configs():
            assert pod["terminationGracePeriodSeconds"] > float(values["AEIC_CLOUD_DRAIN_SECONDS"]) + 10


def test_selectors_meet_their_pods() -> None:
    objects = written()
    pods = [one["spec"]["template"]["metadata"]["labels"] for one in objects if one["kind"] in RUN]
    pods += [
        group["template"]["metadata"]["labels"]
        for one in objects
        if one["kind"] == "RayCluster"
        for group in (one["spec"]["headGroupSpec"], *one["spec"]["workerGroupSpecs"])
    ]
    for one in objects:
        selector = one.get("spec", {}).get("selector") or one.get("spec", {}).get("podSelector") or {}
        wanted = selector.get("matchLabels", selector if one["kind"] == "Service" else {})
        assert not wanted or any(wanted.items() <= labels.items() for labels in pods), one["metadata"]["name"]


def test_settings_named_there_exist() -> None:
    known = {f"AEIC_CLOUD_{name.upper()}" for name in Settings.model_fields}
    known |= {f"AEIC_CLOUD_{name.upper()}_FILE" for name in Settings.secrets()}
    known |= {f"AEIC_FLEET_{name.upper()}" for name in FleetSettings.model_fields}
    text = "".join(path.read_text() for path in DEPLOY.glob("k*/**/*.yaml"))
    assert set(re.findall(r"AEIC_(?:CLOUD|FLEET)_[A-Z_]+", text)) <= known
    assert all(Settings(**_lower(values)) for values in configs())


def test_the_scaler_asks_for_columns_that_exist(store_url: str) -> None:
    import sqlalchemy as sa

    from cloud_decoder.store.store import Store

    (scaled,) = (one for one in written() if one["kind"] == "ScaledObject")
    store = Store(store_url)
    for trigger in scaled["spec"]["triggers"]:
        query = trigger["metadata"]["query"]
        assert set(re.findall(r"\b(lease_until|queued_ms|wanted)\b", query)) <= set(metadata.tables["jobs"].c.keys())
        if not store.database.sqlite:
            with store.database.read() as connection:
                assert float(connection.scalar(sa.text(query))) == 0
    store.close()


def configs() -> list[dict[str, str]]:
    """The settings of each ConfigMap: of the fleet and of the single node."""
    found = [dict(one["data"]) for one in written() if one["kind"] == "ConfigMap"]
    assert len(found) == 2
    return found


def _lower(values: dict[str, str]) -> dict[str, Any]:
    """As arguments of the settings. The tokens are in a file, which is not here."""
    own = {name.removeprefix("AEIC_CLOUD_").lower(): value for name, value in values.items()}
    return {name: value for name, value in own.items() if not name.endswith("_file")}
