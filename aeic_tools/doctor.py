"""``aeic doctor``: what of an installation is there, what works, and what to do about the rest.

Each check gives a :class:`Finding`. Everything that may crash or hang, such as loading a GPU's libraries, runs in a
child process (:mod:`aeic_tools.doctor_probe`). Nothing is written except one file of a few bytes in the data folders,
which is removed at once.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import aeic
from aeic import errors
from aeic.runtime.driver import driver_version, edge_runtime_remedy, nvidia_driver
from aeic_tools.files import is_there

Role = Literal["edge", "cloud"]
ROLES: dict[str, tuple[str, ...]] = {
    "edge": ("fastapi", "grpcio", "prometheus-client", "protobuf", "pydantic-settings", "uvicorn"),
    "cloud": ("fastapi", "grpcio", "prometheus-client", "protobuf", "pydantic-settings", "sqlalchemy", "uvicorn"),
}
"""What each service imports, besides the runtime of the graphs."""
OPTIONAL = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "diffusers", "safetensors", "constriction", "av")
PROBE_SECONDS = 120.0
CONNECT_SECONDS = 5.0
LITTLE_BYTES, NO_BYTES = 2 << 30, 200 << 20
"""Free disk space below which a data folder gets a warning, and below which it has failed."""
UNIT_DATA: dict[Role, str] = {"edge": "/var/lib/aeic-edge/spool", "cloud": "/var/lib/aeic-cloud"}
"""The data folders of the systemd units in deploy."""
OTHER_USER = "run this as the user of the service, or with sudo"
EPOCH = 1_750_000_000
"""A clock before this moment (June 2025) is wrong: this program did not exist."""


class Status(StrEnum):
    """``failed`` must be remedied before the service works, ``warning`` need not. ``absent`` was not asked for."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    ABSENT = "absent"


@dataclass(frozen=True)
class Finding:
    """One check: its name, what was found, and the remedy if one is needed."""

    name: str
    status: Status
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Options:
    """What is examined. ``roles`` empty: those whose packages are installed."""

    roles: tuple[str, ...] = ()
    bundle: Path | None = None
    cloud_address: str = ""
    edge_data: Path | None = None
    cloud_data: Path | None = None


def run(options: Options, as_json: bool) -> int:
    """Examine everything and print the findings. Returns 1 if a check has failed."""
    findings = []
    for finding in examine(options):
        findings.append(finding)
        if not as_json:
            print(_line(finding), flush=True)
    failed = [finding.name for finding in findings if finding.status is Status.FAILED]
    if as_json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}))
    else:
        print(f"\n{', '.join(failed)}: see the remedy beside it" if failed else "\nnothing has failed")
    return 1 if failed else 0


def examine(options: Options) -> Iterator[Finding]:
    """All checks, cheap ones first. A check that raises has failed, and the others go on."""
    roles = options.roles or _installed_roles()
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _python),
        ("clock", _clock),
        ("packages", lambda: _packages(roles)),
        ("bundle", lambda: _bundle(options.bundle)),
        ("driver", _driver),
        ("onnxruntime", lambda: _onnxruntime(options.bundle)),
        ("torch", lambda: _torch("cloud" in roles)),
        ("edge data", lambda: _data("edge", options.edge_data)),
        ("cloud data", lambda: _data("cloud", options.cloud_data)),
        ("link", lambda: _link(options.cloud_address)),
    ]
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:  # whatever is broken here, the rest is still worth knowing
            yield Finding(name, Status.FAILED, f"the check itself failed ({type(error).__name__}: {error})")


def _line(finding: Finding) -> str:
    remedy = f"\n{'':24}-> {finding.remedy}" if finding.remedy else ""
    return f"{finding.status.upper():8} {finding.name:14} {finding.what}{remedy}"


# -- the machine ------------------------------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    version, system = platform.python_version(), f"{platform.system()} {platform.machine()}"
    what = f"{version} on {system}, aeic {aeic.__version__}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        yield Finding("python", Status.FAILED, what, "install Python 3.11 to 3.14")
    elif sys.version_info >= (3, 13):
        yield Finding("python", Status.OK, f"{what} (training needs 3.11 or 3.12)")
    else:
        yield Finding("python", Status.OK, what)


def _clock() -> Iterator[Finding]:
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    service = Path("/run/systemd/timesync")
    if now < EPOCH:
        yield Finding("clock", Status.FAILED, shown, "set the clock: capture times and TLS certificates depend on it")
    elif service.is_dir() and not (service / "synchronized").exists():
        remedy = "check `timedatectl`: the clock has not been synchronised since the start"
        yield Finding("clock", Status.WARNING, shown, remedy)
    else:
        yield Finding("clock", Status.OK, shown)


def _driver() -> Iterator[Finding]:
    sign = nvidia_driver()
    if not sign:
        yield Finding("driver", Status.ABSENT, "no NVIDIA driver: everything runs on the CPU")
        return
    yield Finding("driver", Status.OK, driver_version() or f"found by {sign}")


# -- packages and the runtimes ----------------------------------------------------------------------------------------


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _installed_roles() -> tuple[str, ...]:
    return tuple(role for role, names in ROLES.items() if all(map(_version, names)))


def _packages(roles: tuple[str, ...]) -> Iterator[Finding]:
    if not roles:
        remedy = f"{errors.remedy('edge-cpu')}, or with cloud-cpu"
        yield Finding("services", Status.FAILED, "neither service has its packages", remedy)
    for role in roles:
        missing = [name for name in ROLES[role] if not _version(name)]
        if missing:
            remedy = errors.remedy(f"{role}-cpu")
            yield Finding(role, Status.FAILED, f"{', '.join(missing)} missing", remedy)
        else:
            yield Finding(role, Status.OK, "its packages are installed")
    found = [f"{name} {version}" for name in OPTIONAL if (version := _version(name))]
    yield Finding("packages", Status.OK, ", ".join(found) or "none of the runtimes")
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        remedy = "uninstall both, then install the edge-cpu or the edge-gpu extra"
        what = "onnxruntime and onnxruntime-gpu overwrite each other's files"
        yield Finding("onnxruntime", Status.FAILED, what, remedy)
    elif not (_version("onnxruntime") or _version("onnxruntime-gpu")):
        remedy = f"{errors.remedy('edge-cpu')}; on a Jetson see docs/how-to/jetson.md"
        yield Finding("onnxruntime", Status.FAILED, "not installed: nothing runs the graphs", remedy)


def _bundle(path: Path | None) -> Iterator[Finding]:
    from aeic.bundle import Bundle
    from aeic.errors import BundleError

    try:
        bundle = Bundle.load(path)
    except BundleError as error:
        yield Finding("bundle", Status.FAILED, str(error), "give a bundle with --model or AEIC_BUNDLE")
        return
    decoders = [name for name in ("synthesis.onnx", "weights.safetensors") if bundle.has(name)]
    entropy = "a GPU can entropy-decode" if bundle.auxiliary("integer.npz") else "entropy decoding on the CPU only"
    what = f"{bundle.name} {bundle.fingerprint}, {', '.join(decoders) or 'encoder only'}; {entropy}"
    yield Finding("bundle", Status.OK, what)


def _onnxruntime(bundle: Path | None) -> Iterator[Finding]:
    if not (_version("onnxruntime") or _version("onnxruntime-gpu")):
        return
    found = probe("onnxruntime", str(bundle or ""))
    if "error" in found:
        remedy = "reinstall the package; on Linux it needs glibc 2.28 or later"
        yield Finding("onnxruntime", Status.FAILED, found["error"], remedy)
        return
    for name, problem in found["providers"].items():
        short = name.removesuffix("ExecutionProvider")
        if not problem:
            yield Finding(short, Status.OK, "a session opens, and its answer agrees with the CPU's")
        elif short == "Tensorrt" and os.environ.get("AEIC_EDGE_PROVIDER") != "tensorrt":
            # The wheel of onnxruntime-gpu lists it, and no extra brings its libraries.
            what = f"optional, used only with AEIC_EDGE_PROVIDER=tensorrt; it does not work here ({problem})"
            yield Finding(short, Status.ABSENT, what)
        elif not nvidia_driver():
            remedy = (
                "install the driver of the GPU (`nvidia-smi` must work); without a GPU, the extra edge-cpu is smaller"
            )
            yield Finding(short, Status.WARNING, "no NVIDIA driver: the edge runs on the CPU", remedy)
        else:
            missing = f"; not loaded: {', '.join(found['libraries'])}" if found["libraries"] else ""
            remedy = f"{edge_runtime_remedy()}, or set AEIC_EDGE_PROVIDER=cpu"
            if short == "Tensorrt":
                remedy = "install TensorRT's libraries, which no extra brings, or set AEIC_EDGE_PROVIDER=cuda"
            yield Finding(short, Status.FAILED, f"{problem}{missing}", remedy)
    if nvidia_driver() and not any("CUDA" in name for name in found["providers"]):
        remedy = f"if an edge is to use the GPU, pip uninstall onnxruntime, then {edge_runtime_remedy()}"
        yield Finding("CUDA", Status.WARNING, "there is a GPU, but this ONNX Runtime cannot use it", remedy)


def _torch(needed: bool) -> Iterator[Finding]:
    if not _version("torch"):
        what = "not installed" + (": this cloud decodes with ONNX Runtime on the CPU" if needed else "")
        yield Finding("torch", Status.ABSENT, what)
        return
    found = probe("torch")
    if "error" in found:
        yield Finding("torch", Status.FAILED, found["error"], f"pip uninstall torch, then {errors.remedy('cloud')}")
        return
    if not found["cards"]:
        status = Status.FAILED if nvidia_driver() else Status.OK
        remedy = "install a torch with CUDA for this driver (pytorch.org); `nvidia-smi` must work first"
        what = f"{found['version']}, no GPU that it can use"
        yield Finding("torch", status, what, remedy if status is Status.FAILED else "")
    for card in found["cards"]:
        what = f"{found['version']} on {card['name']}, {card['free'] / 1e9:.1f} GB free, multiplies {card['dtype']}"
        if card["error"]:
            remedy = "see `nvidia-smi`, or restart the machine"
            yield Finding("torch", Status.FAILED, f"{what}: {card['error']}", remedy)
        else:
            yield Finding("torch", Status.OK, what)


def probe(*arguments: str, seconds: float = PROBE_SECONDS) -> dict[str, Any]:
    """What ``aeic_tools.doctor_probe`` finds in a separate process; ``error`` if it crashes or hangs."""
    command = [sys.executable, "-m", "aeic_tools.doctor_probe", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {seconds:g} s"}
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"the process ended with status {done.returncode}: {last[:200]}"}


# -- data and the link ------------------------------------------------------------------------------------------------


def _data(role: Role, given: Path | None) -> Iterator[Finding]:
    name = f"{role} data"
    folder = given or Path(os.environ.get(f"AEIC_{role.upper()}_DATA_DIR") or f"var/{role}")
    try:
        there = is_there(folder)
    except PermissionError:
        yield Finding(name, Status.FAILED, f"{folder} cannot be read (Permission denied)", OTHER_USER)
        return
    if not there:
        option = "" if given else f", or --{role}-data names another (systemd: {UNIT_DATA[role]})"
        yield Finding(name, Status.ABSENT, f"{folder} does not exist yet; the service creates it{option}")
        return
    free = shutil.disk_usage(folder).free
    what = f"{folder}, {free / 1e9:.1f} GB free"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"aeic")
    except OSError as error:
        remedy = "give the folder to the user of the service, or free the disk"
        if isinstance(error, PermissionError):
            remedy = f"{OTHER_USER}; a folder that this user cannot write either must be given to it"
        yield Finding(name, Status.FAILED, f"{what}, cannot be written ({error.strerror})", remedy)
        return
    if free < LITTLE_BYTES:
        status = Status.FAILED if free < NO_BYTES else Status.WARNING
        yield Finding(name, status, what, "free the disk, or lower the limits of spool, store and cache")
    else:
        yield Finding(name, Status.OK, what)
    yield from _spool(folder) if role == "edge" else _store(folder)


def _spool(folder: Path) -> Iterator[Finding]:
    if not (folder / "spool.sqlite3").is_file():
        return
    try:
        from edge_encoder.spool.verification import check
    except ImportError:
        yield Finding("spool", Status.ABSENT, "not examined: the edge's packages are missing")
        return
    report = check(folder)
    if report.ok:
        yield Finding("spool", Status.OK, "no damage")
    else:
        yield Finding("spool", Status.FAILED, "it is damaged", f"`aeic spool check {folder}` lists all damage")


def _store(folder: Path) -> Iterator[Finding]:
    file = folder / "store.db"
    if not file.is_file():
        return
    try:
        connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=CONNECT_SECONDS)
        try:
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        answer = str(error)
    if answer == "ok":
        yield Finding("store", Status.OK, "no damage")
    else:
        yield Finding("store", Status.FAILED, answer, "stop the cloud and restore the store from a backup")


def _link(address: str) -> Iterator[Finding]:
    address = address or os.environ.get("AEIC_EDGE_CLOUD_ADDRESS", "")
    if not address:
        yield Finding("link", Status.ABSENT, "no address of a cloud: give --cloud HOST:PORT or AEIC_EDGE_CLOUD_ADDRESS")
        return
    host, _, port = address.rpartition(":")
    try:
        started = time.perf_counter()
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            seconds = time.perf_counter() - started
    except ValueError:
        yield Finding("link", Status.FAILED, f"{address} is not an address", "write HOST:PORT, such as cloud:9090")
    except OSError as error:
        remedy = "start the cloud, and check the name, the port and the firewalls between"
        yield Finding("link", Status.FAILED, f"{address} cannot be reached ({error})", remedy)
    else:
        yield Finding("link", Status.OK, f"{address} answers within {1e3 * seconds:.0f} ms")
