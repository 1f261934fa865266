"""What can be checked of the containers without a Docker engine: names, settings, the compose schema, the Dockerfiles.

`make test-ops` installs the checkers; where one is missing its test says so. Metrics: tests/cloud/test_ops.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud_decoder.settings import Settings as CloudSettings
from edge_encoder.settings import EdgeSettings
from tests.support.programs import load
from tests.support.roots import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
IMAGES = sorted(DEPLOY.glob("*.Dockerfile"))


UNIT = DEPLOY / "aeic-edge.service"
UNITS = sorted(DEPLOY.glob("*.service"))
MOST_EXPOSURE = "30"
"""Tenths of what ``systemd-analyze security`` gives: 0 is confined, 100 is exposed."""


@pytest.mark.parametrize("path", [*IMAGES, *UNITS, ROOT / "docker-compose.yml"], ids=lambda path: path.name)
def test_settings_named_in_containers_exist(path: Path) -> None:
    for side, settings in (("EDGE", EdgeSettings), ("CLOUD", CloudSettings)):
        named = {name.lower() for name in re.findall(rf"AEIC_{side}_([A-Z_]+)", path.read_text())}
        known = {*settings.model_fields, *(f"{name}_file" for name in settings.secrets())}
        assert named <= known, named - known


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze (Debian: systemd)")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_are_confined(path: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSURE}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_limit_memory_and_files(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"^MemoryMax=[14]G$", text, re.M) and int(re.findall(r"^LimitNOFILE=(\d+)$", text, re.M)[0]) > 4096


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_keep_files_from_other_users(path: Path) -> None:
    assert {"UMask=0077", "StateDirectoryMode=0700"} <= set(path.read_text().splitlines())


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_are_named_in_the_log(path: Path) -> None:
    """And not `python`, the program that both start."""
    assert f"SyslogIdentifier={path.stem}" in path.read_text().splitlines()


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_stop_leaves_child_processes_to_the_service(path: Path) -> None:
    """By default systemd ends the decoder's process as well, which the service reports as an error and starts again."""
    assert "KillMode=mixed" in path.read_text().splitlines()


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_an_upgrade_replaces_the_unit(path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "upgrade.md").read_text()
    replaced = f"cp deploy/{path.name} /etc/systemd/system/\nsystemctl daemon-reload\nsystemctl restart {path.stem}\n"
    assert replaced in page


def test_pages_name_the_folders_of_the_units() -> None:
    text = "\n".join(path.read_text() for path in UNITS)
    known = set(re.findall(r"AEIC_\w+_DIR=(/var/lib/\S+)", text))
    for page in sorted((ROOT / "docs" / "how-to").glob("*.md")):
        for line in re.findall(r"^.*/aeic (?:doctor|store|spool|bundle) .*$", page.read_text(), re.M):
            for named in re.findall(r"/var/lib/aeic-[a-z/-]+", line):
                assert named.removesuffix("/store") in known, f"{page.name}: {line}"


def test_every_image_has_a_bill_of_materials() -> None:
    """`make dist` writes one for every set of packages that an image can be built with."""
    made = set(re.findall(r"^SBOMS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split())
    texts = [path.read_text() for path in (*IMAGES, ROOT / "docker-compose.yml")]
    chosen = [names for text in texts for names in re.findall(r"\b(?:EXTRA|RUNTIME)(?:=|: )([\w,-]+)", text)]
    assert len(chosen) > 2 and {name for names in chosen for name in names.split(",")} <= made
    assert all((ROOT / "requirements" / f"{name}.txt").is_file() for name in made)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_files_copied_into_images_exist(path: Path) -> None:
    for line in re.findall(r"^COPY (?!--)(.+)$", path.read_text(), re.M):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), f"{path.name} copies {name}"


def test_compose_lets_the_gpus_kernels_be_chosen_and_cached() -> None:
    """By default they are not used; the file system is read-only but for the volume, where Triton may write."""
    cloud = COMPOSE["services"]["cloud-gpu"]
    default = CloudSettings.model_fields["entropy"].default
    assert cloud["environment"]["AEIC_CLOUD_ENTROPY"] == "${AEIC_CLOUD_ENTROPY:-" + default + "}"
    folder = re.fullmatch(r"\$\{TRITON_CACHE_DIR:-(/.+)\}", cloud["environment"]["TRITON_CACHE_DIR"])
    (volume,) = cloud["volumes"]
    assert folder and folder[1].startswith(volume.split(":")[1] + "/") and cloud["read_only"]


def test_extras_named_in_images_exist() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    for path in IMAGES:
        for extra in re.findall(r"^ARG (?:EXTRA|RUNTIME)=(.+)$", path.read_text(), re.M):
            assert re.search(rf"^{extra} = ", pyproject, re.M), extra


def test_compose_holds_together() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"edge", "edge-gpu", "cloud", "cloud-gpu", "prometheus", "grafana"}
    for service in services.values():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "profiles" not in services["edge"] and "profiles" not in services["cloud"]
    assert services["cloud-gpu"]["profiles"] == ["gpu"] and services["edge-gpu"]["profiles"] == ["edge-gpu"]
    base = {"BASE": "${AEIC_BASE_IMAGE:-" + _default_base() + "}"}
    assert services["edge"]["build"]["args"] == services["cloud"]["build"]["args"] == base
    assert services["edge-gpu"]["build"]["args"] == base | {"RUNTIME": "edge-gpu"}
    assert services["cloud-gpu"]["build"]["args"] == base | {"EXTRA": "cloud"}
    for name in ("cloud-gpu", "edge-gpu"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
    port = re.search(r"AEIC_CLOUD_GRPC_PORT=(\d+)", (DEPLOY / "cloud.Dockerfile").read_text())
    assert port and services["edge"]["environment"]["AEIC_EDGE_CLOUD_ADDRESS"] == f"cloud:{port.group(1)}"


def _default_base() -> str:
    """The base image of both Dockerfiles, unless the build argument names another one."""
    (base,) = {re.findall(r"^ARG BASE=(.+)$", path.read_text(), re.M)[0] for path in IMAGES}
    for path in IMAGES:
        stages = set(re.findall(r"^FROM \S+ AS (\w+)$", path.read_text(), re.M))
        assert set(re.findall(r"^FROM (\S+)", path.read_text(), re.M)) - stages == {"${BASE}"}
    return str(base)


def test_both_images_share_the_stages_before_their_packages() -> None:
    """So that a build of the second image takes them from the cache."""
    (shared,) = {path.read_text().partition("\nARG BASE=")[2].partition("\nFROM tools AS build")[0] for path in IMAGES}
    assert "AS tools" in shared and "AS wheel" in shared and "\nARG " not in shared


@pytest.fixture
def try_compose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """deploy/try_compose.py as root of a machine that allows everything; `make test-compose` really runs it."""
    found = load("try_compose", DEPLOY / "try_compose.py")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(found, "CGROUPS", tmp_path)
    monkeypatch.setattr("sys.argv", ["try_compose.py"])
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return found


def _unshare(folder: Path, script: str) -> None:
    for name, text in {"unshare": script, "iptables": "exit 0"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 0", None),
        ("exit 1", "this machine does not allow root to mount file systems"),
        ('[ "$2" != iptables ]', "this machine does not allow root to translate addresses"),
    ],
)
def test_it_is_seen_whether_a_docker_engine_can_run(
    try_compose: Any, tmp_path: Path, script: str, reason: str | None
) -> None:
    _unshare(tmp_path, script)
    assert try_compose.obstacle() == reason


def test_without_root_compose_is_not_run_and_says_so(
    try_compose: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(try_compose, "run", lambda: pytest.fail("it must not start anything"))
    assert try_compose.main() == 0
    assert capsys.readouterr().out == "make test-compose: not run here: it needs root\n"


@pytest.mark.parametrize(("user", "writable", "code"), [("10001", False, 0), ("0", False, 1), ("10001", True, 1)])
def test_compose_fails_where_a_container_is_not_confined(
    try_compose: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: str, writable: bool, code: int
) -> None:
    _unshare(tmp_path, "exit 0")
    found = {"users": {"edge": "10001", "cloud": user}, "read_only": {"edge": True, "cloud": not writable}}
    monkeypatch.setattr(try_compose, "run", lambda: found)
    assert try_compose.main() == code


def test_prometheus_scrapes_both() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    targets = {
        target for job in config["scrape_configs"] for entry in job["static_configs"] for target in entry["targets"]
    }
    assert targets == {"edge:8080", "cloud:8081"}
    mounts = [mount.split(":")[:2] for mount in COMPOSE["services"]["prometheus"]["volumes"] if mount.startswith("./")]
    assert all((ROOT / source).is_file() for source, _ in mounts)
    assert {f"/etc/prometheus/{name}" for name in config["rule_files"]} <= {target for _, target in mounts}


def test_every_service_is_confined_and_healthchecked() -> None:
    for name, service in COMPOSE["services"].items():
        if "build" not in service:
            assert service["healthcheck"]["test"], name
            continue
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        text = (ROOT / service["build"]["dockerfile"]).read_text()
        assert re.search(r"^USER 10001$", text, re.M) and "HEALTHCHECK" in text and "STOPSIGNAL SIGTERM" in text
    for side in ("cloud", "cloud-gpu"):
        port = re.search(r"AEIC_EDGE_PORT=(\d+)", (DEPLOY / "edge.Dockerfile").read_text())
        assert (
            port and COMPOSE["services"][side]["environment"]["AEIC_CLOUD_EDGE_URL"] == f"http://edge:{port.group(1)}"
        )


def test_every_package_is_copied_into_the_images() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    for path in IMAGES:
        assert packages <= set(re.findall(r"^COPY (\w+) ", path.read_text(), re.M)), path.name


def _unpinned(text: str) -> list[str]:
    """The lines of a Dockerfile or a compose file that name an image of a registry by a tag, with no reason above."""
    stages, built = set(re.findall(r"^FROM .+ AS (\w+)$", text, re.M)), {"aeic-edge", "aeic-cloud"}
    built |= {f"{name}-gpu" for name in built}
    found, reason = [], False
    for line in text.splitlines():
        named = re.match(r"(?:ARG BASE=|FROM |COPY --from=|\s+image: )(\S+)", line)
        if named and not re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", named[1]):
            known = named[1] == "${BASE}" or named[1] in stages or (named[1] in built and line[0] == " ")
            found += [] if known or reason else [line.strip()]
        reason = "Not pinned by digest: " in line or (reason and line.lstrip().startswith("#"))
    return found


@pytest.mark.parametrize("path", [*IMAGES, ROOT / "docker-compose.yml"], ids=lambda path: path.name)
def test_every_image_is_named_by_digest_or_says_why_not(path: Path) -> None:
    text = path.read_text()
    assert not _unpinned(text)
    assert _unpinned(text.replace("Not pinned by digest: ", ""))
    others = ("FROM debian:12", "COPY --from=busybox:1.37 /bin/busybox /bin/", "    image: redis:8", "ARG BASE=x:1")
    for other in others:
        assert _unpinned(f"{text}\n{other}\n") == [other.strip()]


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose (Debian: docker-compose)")
@pytest.mark.parametrize("profiles", [[], ["gpu"], ["monitoring"], ["gpu", "monitoring"]], ids="-".join)
def test_docker_compose_takes_the_file(profiles: list[str]) -> None:
    chosen = [word for profile in profiles for word in ("--profile", profile)]
    done = subprocess.run(["docker-compose", *chosen, "config", "-q"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _checker(name: str) -> str:
    found = Path(sys.executable).with_name(name)
    if not found.exists():
        pytest.skip(f"{name} is not installed: make test-ops")
    return str(found)


def test_the_compose_file_fits_its_schema() -> None:
    command = [_checker("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    done = subprocess.run([_checker("hadolint"), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_has_its_watchdog_and_starts_again() -> None:
    lines = UNIT.read_text().splitlines()
    assert {"Type=notify", "WatchdogSec=30", "Restart=always", "ProtectSystem=strict"} <= set(lines)
    (command,) = [line for line in lines if line.startswith("ExecStart=")]
    assert command.endswith("/bin/python -m edge_encoder")
