#!/usr/bin/env python3
"""Builds docker-compose.yml, runs it and sends frames through it over a restart of the cloud: `make test-compose`.

It needs root and Debian's docker.io, docker-compose, debootstrap and prometheus, but no container registry: the base
image is Debian's Python from debootstrap (deploy/debian_root.sh), and Debian's Prometheus stands in for that of the
compose file. Grafana is left out, because no Debian package has it. The Docker engine is a separate one, with its own
socket and folder. Everything but the base image is removed at the end; KEEP=1 keeps the folder out/compose.

Where no Docker engine can run, because this is not root or the kernel does not allow it, one line that begins with
``make test-compose: not run here`` says so and the exit code is 0. Everything else that goes wrong is a failure.
``--probe`` only prints that line, and nothing where an engine can run. It needs none of Debian's packages.

1. Both images are built and start with a read-only root and without capabilities, and all health checks pass.
2. Pictures are posted to the edge before, during and after a kill of the cloud. All arrive, once each, and are decoded.
3. Everything is stopped and started again: the frames are still there.
4. Prometheus reaches both services. The alerts that fire are printed; a full disk of this machine may be among them.

The last line is one JSON object; `seconds` are those of each step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "out" / "compose"
BASE, PROJECT = "aeic-debian-python", "aeictry"
SERVICES = ("edge", "cloud", "prometheus")
PICTURES = ("owl.jpg", "coffee.jpg", "flower.jpg")
EACH = 10
SECONDS = 180.0
NOT_RUN = "make test-compose: not run here: "
CGROUPS = Path("/sys/fs/cgroup")
PROBES = (
    ("mount file systems", "--mount", ("mount", "-t", "tmpfs", "none", "/mnt")),
    ("start processes in namespaces of their own", "--net --pid --ipc --uts --fork", ("true",)),
    ("translate addresses", "--net", ("iptables", "-t", "nat", "--list")),
)
"""What a Docker engine does for each container, with the namespaces and a command that does it."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def obstacle() -> str | None:
    """Why no Docker engine can run on this machine; None if one can."""
    if os.geteuid():
        return "it needs root"
    if not os.access(CGROUPS, os.W_OK):
        return f"{CGROUPS} cannot be written, so this machine is a container without privileges"
    for what, namespaces, command in PROBES:
        tried = ["unshare", *namespaces.split(), *command]
        if shutil.which(command[0]) and subprocess.run(tried, capture_output=True).returncode:
            return f"this machine does not allow root to {what}"
    return None


@contextlib.contextmanager
def step(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Say what begins, and record how long it took."""
    say(f"{name} ...")
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 1)


def until(what: str, holds: Callable[[], Any]) -> Any:
    """Wait until ``holds`` gives something true, and return it."""
    end = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(OSError, KeyError):
            if found := holds():
                return found
        if time.monotonic() > end:
            raise SystemExit(f"within {SECONDS:.0f} s not seen: {what}")
        time.sleep(0.2)


def ask(url: str, body: bytes | None = None) -> Any:
    """The JSON or bytes of an answer. ``OSError`` for any other status than 2xx."""
    with _DIRECT.open(urllib.request.Request(url, data=body), timeout=60) as answer:
        data = answer.read()
        return json.loads(data) if "json" in answer.headers["Content-Type"] else data


@contextlib.contextmanager
def engine(folder: Path, socket_folder: Path) -> Iterator[dict[str, str]]:
    """A Docker engine of our own, and the environment in which `docker` finds it."""
    address = f"unix://{socket_folder}/docker.sock"
    command = ["dockerd", f"--data-root={folder / 'engine'}", f"--exec-root={socket_folder / 'exec'}"]
    command += [f"--pidfile={socket_folder / 'pid'}", f"--host={address}", "--bridge=none"]
    if driver := os.environ.get("DOCKER_STORAGE_DRIVER"):
        command.append(f"--storage-driver={driver}")
    environment = {**os.environ, "DOCKER_HOST": address}
    with (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:

        def answers() -> bool:
            if process.poll() is not None:
                raise SystemExit(f"dockerd ended: {(folder / 'dockerd.log').read_text()[-1500:]}")
            return subprocess.run(["docker", "info"], env=environment, capture_output=True).returncode == 0

        until("the Docker engine", answers)
        yield environment
    finally:
        process.terminate()
        process.wait(60)
        for left in (socket_folder / "exec" / "netns").glob("*"):  # the engine leaves its network namespace mounted
            subprocess.run(["umount", left], check=False)


def base_image(environment: dict[str, str]) -> None:
    """Debian's Python, with the package index and the certificates that this machine is configured for."""
    archive = ROOT / "out" / "images" / "root.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([ROOT / "deploy" / "debian_root.sh", archive], check=True)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        plain = subprocess.run(["docker", "import", archive, f"{BASE}-plain"], env=environment, capture_output=True)
        assert plain.returncode == 0, plain.stderr
        lines = [f"FROM {BASE}-plain"]
        for path in ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt"):
            if Path(path).exists():
                shutil.copy(path, folder)
                lines.append(f"COPY {Path(path).name} {path}")
        (Path(folder) / "Dockerfile").write_text("\n".join(lines) + "\n")
        subprocess.run(["docker", "build", "-q", "-t", BASE, folder], env=environment, check=True, stdout=sys.stderr)


def prometheus_image(environment: dict[str, str], name: str) -> None:
    """Debian's Prometheus under the name of the compose file, with the entry point and the tools that it relies on."""
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        found = shutil.which("prometheus")
        assert found is not None, "apt-get install prometheus"
        shutil.copy(found, folder)
        wget = (
            "#!/bin/sh\nexec python3 -c 'import sys, urllib.request as r; r.urlopen(sys.argv[-1], timeout=2)' \"$@\"\n"
        )
        (Path(folder) / "wget").write_text(wget)
        (Path(folder) / "wget").chmod(0o755)
        (Path(folder) / "Dockerfile").write_text(
            f"FROM {BASE}\nCOPY prometheus wget /usr/local/bin/\nRUN install -d -o nobody -g nogroup /prometheus\n"
            "USER nobody\nWORKDIR /prometheus\n"
            'ENTRYPOINT ["/usr/local/bin/prometheus"]\n'
            'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]\n'
        )
        subprocess.run(["docker", "build", "-q", "-t", name, folder], env=environment, check=True, stdout=sys.stderr)


class Stack:
    """The project of docker-compose.yml on free ports."""

    def __init__(self, environment: dict[str, str]) -> None:
        ports = {}
        with contextlib.ExitStack() as held:
            for name in ("EDGE", "CLOUD", "GRPC", "PROMETHEUS"):
                listening = held.enter_context(socket.create_server(("127.0.0.1", 0)))
                ports[name] = listening.getsockname()[1]
        self.edge, self.cloud, self.prometheus = (
            f"http://127.0.0.1:{ports[name]}" for name in ("EDGE", "CLOUD", "PROMETHEUS")
        )
        published = {f"AEIC_PUBLISH_{name}": str(port) for name, port in ports.items()}
        self.environment = {**environment, **published, "AEIC_BASE_IMAGE": BASE}
        # A build needs the network of the host where the package index is reachable only from there.
        host = "".join(f"  {name}: {{ build: {{ network: host }} }}\n" for name in ("edge", "cloud"))
        (WORK / "build.yml").write_text(f'version: "3.4"\nservices:\n{host}')

    def compose(self, *arguments: str) -> str:
        """Run docker-compose; what it printed."""
        files = ["-f", "docker-compose.yml", *(["-f", str(WORK / "build.yml")] if arguments[0] == "build" else [])]
        command = ["docker-compose", "-p", PROJECT, *files, "--profile", "monitoring", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            raise SystemExit(f"docker-compose {' '.join(arguments)} failed:\n{done.stdout[-3000:]}")
        return done.stdout

    def image_of(self, service: str) -> str:
        """The image that the compose file names for a service."""
        _, _, text = self.compose("config").partition(f"\n  {service}:\n")
        return text.partition("image: ")[2].partition("\n")[0].strip()

    def docker(self, *arguments: str) -> str:
        """Run docker; what it printed."""
        done = subprocess.run(
            ["docker", *arguments], env=self.environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout.strip()

    def container(self, service: str) -> str:
        """The id of a service's container; empty if none runs."""
        labels = {"project": PROJECT, "service": service}
        filters = [f"--filter=label=com.docker.compose.{key}={value}" for key, value in labels.items()]
        return self.docker("ps", "--quiet", *filters)

    def health(self) -> dict[str, str]:
        """The state of each container's health check."""
        containers = {name: self.container(name) for name in SERVICES}
        return {
            name: self.docker("inspect", "--format", "{{.State.Health.Status}}", container) if container else "missing"
            for name, container in containers.items()
        }

    def build(self) -> None:
        """Both images at once, after the stages that they share."""
        shared = ["docker", "build", "-q", "--network=host", f"--build-arg=BASE={BASE}", "--target=wheel"]
        shared += ["--file=deploy/edge.Dockerfile", "."]
        subprocess.run(shared, cwd=ROOT, env=self.environment, check=True, stdout=sys.stderr)
        self.compose("build", "--parallel", "edge", "cloud")

    def can_write(self, container: str) -> bool:
        """Whether a file can be made in the container's own root."""
        tried = ["docker", "exec", container, "touch", "/opt/file"]
        return subprocess.run(tried, env=self.environment, capture_output=True).returncode == 0

    def up(self) -> None:
        """Start everything but Grafana and wait until it is ready."""
        self.compose("up", "--detach", "--no-build", *SERVICES)
        for url in (f"{self.cloud}/readyz", f"{self.edge}/readyz", f"{self.prometheus}/-/ready"):
            until(url, lambda url=url: ask(url) or True)

    def post(self, count: int) -> list[str]:
        """Post pictures to the edge; the ids that it has acknowledged."""
        bodies = [(ROOT / "examples" / name).read_bytes() for name in PICTURES]
        posted = (ask(f"{self.edge}/v1/frames?preset=1kB", bodies[n % len(bodies)]) for n in range(count))
        return [str(frame["id"]) for frame in posted]

    def stored(self) -> dict[str, str]:
        """The state of each frame in the cloud."""
        frames = ask(f"{self.cloud}/v1/frames?limit=200")["frames"]
        assert len({one["id"] for one in frames}) == len(frames), "a frame is listed twice"
        return {one["id"]: one["state"] for one in frames}


def megabytes(stack: Stack, image: str) -> int:
    """The size of an image above its base."""
    size, base = (int(stack.docker("image", "inspect", "--format", "{{.Size}}", name)) for name in (image, BASE))
    return round((size - base) / 1e6)


def try_it(stack: Stack, seconds: dict[str, float]) -> dict[str, Any]:
    """All steps after the images are there; what was seen."""
    with step("start", seconds):
        stack.up()
        ids = stack.post(EACH)
        until("the first frames in the cloud", lambda: set(ids) <= set(stack.stored()))
    with step("kill the cloud, post meanwhile", seconds):
        stack.compose("kill", "-s", "SIGKILL", "cloud")
        ids += stack.post(EACH)
        waiting = ask(f"{stack.edge}/v1/status")["spool"]["frames"]
        # The kill can take the cloud's answers to the first frames with it; those frames wait again.
        assert EACH <= waiting <= 2 * EACH, f"{waiting} frames wait in the spool"
        stack.compose("start", "cloud")
        ids += stack.post(EACH)
        until("all frames decoded", lambda: all(stack.stored().get(id) == "done" for id in ids))
        assert set(stack.stored()) == set(ids), "the cloud has frames that the edge has not acknowledged"
        picture = ask(f"{stack.cloud}/v1/frames/{ids[-1]}/image?format=webp&wait=30")
    with step("health checks and Prometheus", seconds):
        healthy = until("all health checks", lambda: set(stack.health().values()) == {"healthy"} and stack.health())
        asked = f"{stack.prometheus}/api/v1/query?query=up"
        until("both targets up", lambda: [one["value"][1] for one in ask(asked)["data"]["result"]] == ["1", "1"])
        alerts = ask(f"{stack.prometheus}/api/v1/alerts")["data"]["alerts"]
        containers = {name: stack.container(name) for name in ("edge", "cloud")}
        users = {name: stack.docker("exec", container, "id", "-u") for name, container in containers.items()}
        read_only = {name: not stack.can_write(container) for name, container in containers.items()}
    with step("stop and start everything", seconds):
        stack.compose("down")
        stack.up()
        kept = stack.stored()
        assert set(kept) == set(ids) and set(kept.values()) == {"done"}, "frames are missing after the restart"
    return {
        "frames": len(ids),
        "lost": 0,
        "picture_bytes": len(picture),
        "health": healthy,
        "firing": [one["labels"]["alertname"] for one in alerts if one["state"] == "firing"],
        "users": users,
        "read_only": read_only,
        "edge_megabytes_over_base": megabytes(stack, "aeic-edge"),
        "cloud_megabytes_over_base": megabytes(stack, "aeic-cloud"),
        "engine": stack.docker("version", "--format", "{{.Server.Version}}"),
        "storage_driver": stack.docker("info", "--format", "{{.Driver}}"),
        "grafana": "not run: no image without a registry",
    }


def run() -> dict[str, Any]:
    """Everything, with an engine that is gone afterwards."""
    seconds: dict[str, float] = {}
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as folder, engine(WORK, Path(folder)) as environment:
            with step("base image", seconds):
                base_image(environment)
            stack = Stack(environment)
            with step("build both images", seconds), ThreadPoolExecutor(1) as beside:
                standing_in = beside.submit(prometheus_image, environment, stack.image_of("prometheus"))
                stack.build()
                standing_in.result()
            try:
                found = try_it(stack, seconds)
            except BaseException:
                with contextlib.suppress(SystemExit):
                    say(stack.compose("logs", "--tail", "20", "--no-color"))
                raise
            finally:
                stack.compose("down", "--volumes", "--timeout", "5")
            return {"bench": "compose", **found, "seconds": seconds}
    finally:
        if not os.environ.get("KEEP"):
            shutil.rmtree(WORK, ignore_errors=True)


def main() -> int:
    """The exit code: 0 if everything was as described above, or if no engine can run here."""
    parser = argparse.ArgumentParser(description="Build and run docker-compose.yml on a Docker engine of its own.")
    parser.add_argument("--probe", action="store_true", help="only say why no Docker engine can run here, if so")
    probe = parser.parse_args().probe
    if (reason := obstacle()) is not None:
        print(NOT_RUN + reason, flush=True)
        return 0
    if probe:
        return 0
    found = run()
    print(json.dumps(found), flush=True)
    right = set(found["users"].values()) == {"10001"} and all(found["read_only"].values())
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
