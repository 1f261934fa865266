"""``aeic doctor``: a healthy installation passes, and each planted fault is named with its remedy."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aeic.bundle import default_bundle_path
from aeic_tools import doctor
from aeic_tools.doctor import Finding, Options, Status
from tests.support.roots import ROOT

ONNX = {"version": "1", "providers": {}, "libraries": []}
TORCH = {"version": "2", "cards": []}


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Finding]]:
    """The findings by name; ``probes`` are the answers of the child processes."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "AEIC_EDGE_DATA_DIR",
        "AEIC_CLOUD_DATA_DIR",
        "AEIC_EDGE_CLOUD_ADDRESS",
        "AEIC_BUNDLE",
        "AEIC_EDGE_PROVIDER",
    ):
        monkeypatch.delenv(name, raising=False)

    def examined(probes: dict[str, Any] | None = None, **options: Any) -> dict[str, Finding]:
        answers = {"onnxruntime": ONNX, "torch": TORCH} | (probes or {})
        monkeypatch.setattr(doctor, "probe", lambda kind, *rest: answers[kind])
        return {finding.name: finding for finding in doctor.examine(Options(**options))}

    return examined


def failed(found: dict[str, Finding]) -> list[str]:
    assert all(finding.remedy for finding in found.values() if finding.status in (Status.FAILED, Status.WARNING))
    return [name for name, finding in found.items() if finding.status is Status.FAILED]


def test_the_command_examines_this_installation(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aeic_tools.cli", "doctor", "--json", "--edge-data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    found = {one["name"]: one for one in report["findings"]}
    assert found["python"]["status"] == "ok" and found["bundle"]["status"] == "ok"
    assert "onnxruntime" in found["packages"]["what"] and str(tmp_path) in found["edge data"]["what"]
    assert list(tmp_path.iterdir()) == []


def test_a_healthy_installation_has_no_remedies(findings: Callable[..., dict[str, Finding]], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        found = findings(cloud_address=address, edge_data=tmp_path, cloud_data=tmp_path)
    assert failed(found) == [] and found["link"].status is Status.OK


def test_packages_that_are_missing_or_in_conflict(
    findings: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"onnxruntime": "1", "onnxruntime-gpu": "1", "fastapi": "1"}
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, ""))
    found = findings(roles=("edge",))
    assert failed(found) == ["edge", "onnxruntime"] and "grpcio" in found["edge"].what
    assert "uninstall both" in found["onnxruntime"].remedy
    versions.clear()
    assert failed(findings()) == ["services", "onnxruntime"]


def test_an_altered_bundle(findings: Callable[..., dict[str, Finding]], tmp_path: Path) -> None:
    shutil.copytree(default_bundle_path(), tmp_path / "bundle")
    (tmp_path / "bundle" / "tables.npz").write_bytes(b"altered")
    found = findings(bundle=tmp_path / "bundle")
    assert failed(found) == ["bundle"] and "altered" in found["bundle"].what


def test_a_card_that_onnxruntime_lists_and_cannot_use(
    findings: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: "/dev/dxg")
    broken = {"CUDAExecutionProvider": "listed, but ONNX Runtime gave CPUExecutionProvider"}
    found = findings({"onnxruntime": ONNX | {"providers": broken, "libraries": ["cudnn"]}})
    assert "CUDA" in failed(found) and "torch" in failed(found)
    assert "not loaded: cudnn" in found["CUDA"].what and "edge-gpu" in found["CUDA"].remedy
    assert "/dev/dxg" in found["driver"].what
    works = {"name": "RTX", "dtype": "bfloat16", "free": 8e9, "error": ""}
    found = findings({"torch": TORCH | {"cards": [works]}})
    assert found["torch"].status is Status.OK and "RTX, 8.0 GB free" in found["torch"].what
    assert found["CUDA"].status is Status.WARNING
    found = findings({"torch": TORCH | {"cards": [works | {"error": "CUDA error: unknown"}]}})
    assert "torch" in failed(found)


def test_a_runtime_for_gpus_on_a_machine_without_a_driver_is_told_from_a_broken_one(
    findings: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: "")
    listed = {"CUDAExecutionProvider": "listed, but ONNX Runtime gave CPUExecutionProvider"}
    found = findings({"onnxruntime": ONNX | {"providers": listed}})
    assert found["CUDA"].status is Status.WARNING and "no NVIDIA driver" in found["CUDA"].what
    assert "nvidia-smi" in found["CUDA"].remedy


@pytest.mark.parametrize("driver", ["", "/dev/nvidiactl"])
def test_tensorrt_without_its_libraries_has_failed_only_where_it_was_asked_for(
    driver: str, findings: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel of onnxruntime-gpu lists it, and no extra brings its libraries."""
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: driver)
    listed = {
        "TensorrtExecutionProvider": "listed, but ONNX Runtime gave CPUExecutionProvider",
        "CUDAExecutionProvider": "",
    }
    works = {"name": "RTX", "dtype": "bfloat16", "free": 8e9, "error": ""}
    probes = {"onnxruntime": ONNX | {"providers": listed}, "torch": TORCH | {"cards": [works]}}
    found = findings(probes)
    assert failed(found) == [] and found["Tensorrt"].status is Status.ABSENT and "optional" in found["Tensorrt"].what
    monkeypatch.setenv("AEIC_EDGE_PROVIDER", "tensorrt")
    found = findings(probes)
    if driver:
        assert failed(found) == ["Tensorrt"] and "AEIC_EDGE_PROVIDER=cuda" in found["Tensorrt"].remedy
    else:
        assert found["Tensorrt"].status is Status.WARNING


def test_a_jetson_is_not_told_to_install_an_extra_that_brings_nothing_there(
    findings: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: "/dev/nvgpu")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("platform.release", lambda: "5.15.148-tegra")
    for providers in ({}, {"CUDAExecutionProvider": "listed, but ONNX Runtime gave CPUExecutionProvider"}):
        remedy = findings({"onnxruntime": ONNX | {"providers": providers}})["CUDA"].remedy
        assert "docs/how-to/jetson.md" in remedy and "edge-gpu" not in remedy


def test_a_runtime_that_crashes_or_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.run

    def crashing(command: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", "import os; os.abort()"], **options)

    monkeypatch.setattr(subprocess, "run", crashing)
    assert "status -6" in doctor.probe("torch")["error"]

    def hanging(command: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", "import time; time.sleep(60)"], **options)

    monkeypatch.setattr(subprocess, "run", hanging)
    assert "no answer within" in doctor.probe("torch", seconds=0.2)["error"]


def test_a_clock_that_is_wrong(findings: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    found = findings()
    assert "clock" in failed(found) and found["clock"].what.startswith("1970-01-01")


def test_a_disk_without_room(
    findings: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    for free, status in ((1 << 30, Status.WARNING), (1 << 20, Status.FAILED)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert findings(edge_data=tmp_path)["edge data"].status is status


def test_a_damaged_store_and_spool(findings: Callable[..., dict[str, Finding]], tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    connection = sqlite3.connect(store)
    connection.execute("CREATE TABLE frames (id INTEGER PRIMARY KEY, data BLOB)")
    connection.executemany("INSERT INTO frames (data) VALUES (?)", [(bytes(4000),)] * 50)
    connection.commit()
    connection.close()
    assert findings(cloud_data=tmp_path)["store"].status is Status.OK
    data = bytearray(store.read_bytes())
    data[4096:40960] = b"\xa5" * (40960 - 4096)
    store.write_bytes(data)
    assert "store" in failed(findings(cloud_data=tmp_path))
    assert store.read_bytes() == bytes(data), "it is only read"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "cloud", "127.0.0.1:x"])
def test_a_cloud_that_cannot_be_reached(address: str, findings: Callable[..., dict[str, Finding]]) -> None:
    assert failed(findings(cloud_address=address)) == ["link"]


def test_a_check_that_breaks_does_not_end_the_others(
    findings: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(path: Path | None) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(doctor, "_bundle", breaks)
    found = findings()
    assert "a bug" in found["bundle"].what and "link" in found


def test_the_folder_of_a_service_that_another_user_asks_about(
    findings: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def closed(*_: object, **__: object) -> Any:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", closed)
        found = findings(edge_data=tmp_path)
        assert failed(found) == ["edge data"] and "sudo" in found["edge data"].remedy
    monkeypatch.setattr(doctor, "is_there", closed)
    found = findings(edge_data=tmp_path / "spool")
    assert "edge data" in failed(found) and "cannot be read" in found["edge data"].what
    assert "sudo" in found["edge data"].remedy


def test_the_folders_of_the_units_are_named_where_none_was_given(findings: Callable[..., dict[str, Finding]]) -> None:
    found = findings()
    for role in doctor.UNIT_DATA:
        unit = (ROOT / "deploy" / f"aeic-{role}.service").read_text()
        assert re.search(rf"AEIC_{role.upper()}_DATA_DIR={doctor.UNIT_DATA[role]}\s", unit)
        assert found[f"{role} data"].status is Status.ABSENT
        assert f"--{role}-data" in found[f"{role} data"].what and doctor.UNIT_DATA[role] in found[f"{role} data"].what
