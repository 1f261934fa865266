"""deploy/k8s and deploy/kuberay as far as they can be checked without a cluster.

kubectl (Debian: kubernetes-client) renders the bases, Kubernetes' own schemas (kubernetes-validate) check every object
of its API. KEDA's and Ray's objects have schemas of their own, which no package brings: of them only what is named
elsewhere is compared. Nothing here was applied to a cluster.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from cloud_decoder.fleet.settings import FleetSettings
from cloud_decoder.settings import Settings
from cloud_decoder.store.schema import metadata
from tests.support.roots import DEPLOY

FOREIGN = {"ScaledObject", "TriggerAuthentication", "RayCluster", "Kustomization"}


def written() -> list[dict[str, Any]]:
    files = sorted([*DEPLOY.glob("k8s/*/*.yaml"), *DEPLOY.glob("kuberay/*.yaml")])
    found = [one for path in files for one in yaml.safe_load_all(path.read_text())]
    return [one for one in found if not (one["kind"] == "Deployment" and "selector" not in one["spec"])]  # patches


def rendered(name: str) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed (Debian: kubernetes-client; make test-fleet installs it)")
    command = ["kubectl", "kustomize", str(DEPLOY / "k8s" / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def check(objects: list[dict[str, Any]]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (extra fleet)")
    for one in objects:
        if one["kind"] not in FOREIGN:
            validate.validate(one, "1.33", strict=True)


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        c
        for one in objects
        if one["kind"] in {"Deployment", "Job"}
        for c in one["spec"]["template"]["spec"]["containers"]
    ]


def test_every_object_fits_kubernetes_schemas() -> None:
    objects = written()
    assert {"Deployment", "Service", "Job", "NetworkPolicy", "PodDisruptionBudget", "ScaledObject", "RayCluster"} <= {
        one["kind"] for one in objects
    }
    check(objects)


@pytest.mark.parametrize("name", ["base", "gpu"])
def test_the_bases_render(name: str) -> None:
    objects = rendered(name)
    check(objects)
    assert all(one["metadata"].get("namespace") == "aeic" for one in objects if one["kind"] != "Namespace")
    (worker,) = (c for c in containers(objects) if c["name"] == "worker")
    assert ("nvidia.com/gpu" in worker["resources"]["limits"]) is (name == "gpu")


def test_what_runs_is_probed_bounded_and_drains() -> None:
    for one in written():
        if one["kind"] != "Deployment" or one["metadata"]["name"] == "aeic-controller":
            continue
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        (container,) = pod["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["path"] == ("/healthz" if probe == "livenessProbe" else "/readyz")
        assert container["resources"]["limits"]["memory"] and container["lifecycle"]["preStop"]
        drain = float(config()["AEIC_CLOUD_DRAIN_SECONDS"])
        assert pod["terminationGracePeriodSeconds"] > drain + 10


def test_selectors_meet_their_pods() -> None:
    objects = written()
    pods = [one["spec"]["template"]["metadata"]["labels"] for one in objects if one["kind"] in {"Deployment", "Job"}]
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
    known |= {f"AEIC_FLEET_{name.upper()}" for name in FleetSettings.model_fields}
    text = "".join(path.read_text() for path in DEPLOY.glob("k*/**/*.yaml"))
    assert set(re.findall(r"AEIC_(?:CLOUD|FLEET)_[A-Z_]+", text)) <= known
    Settings(**{name.removeprefix("AEIC_CLOUD_").lower(): value for name, value in config().items()})  # type: ignore


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


def config() -> dict[str, str]:
    (found,) = (one for one in written() if one["kind"] == "ConfigMap")
    return dict(found["data"])
