#!/usr/bin/env python3
"""Follows the quickstart for x86 in a fresh Debian 12, block by block, as a newcomer would: `make test-quickstart`.

It needs root, Debian's debootstrap, 3 GB of memory and a network. The Debian is what its installer always installs,
with sudo and without Python. It lives in memory and in namespaces of its own, and is gone at the end; only its archive
out/quickstart/root.tar is kept for the next run. A user with sudo runs every shell block of the page as it stands,
with these differences:

- YOUR-COPY-OF-THIS-REPOSITORY is a repository with the files of this checkout, committed or not, on the same machine.
- ID is the id in the answer of the block before. A port that is in use here is replaced.
- The package index, the certificates and the proxies are those that this machine is configured for.
- There is no systemd. `systemctl` enables the unit but cannot start it. Instead, `systemd-analyze verify` reads the
  unit, and its command is started with its user and its settings, but without its confinement.

``--arm64`` follows the first step of the quickstart for the Raspberry Pi with every program in qemu, on a private
binfmt_misc (Linux 6.7). The Debian packages are unpacked instead of installed with apt-get. It then compares frames
with those of x86: `make test-quickstart-arm`. This takes about ten minutes.

Where that is not possible, one line says "not run here" with the reason, and the exit code is 0. Everything else
that goes wrong is a failure. ``--probe`` only prints that line. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "how-to"
WORK = ROOT / "out" / "quickstart"
REPOSITORY = "YOUR-COPY-OF-THIS-REPOSITORY"
PORTS = ("8080", "8081", "9090")
SERVICE = re.compile(r"^(?:\w+=\S* )*\S*/aeic (cloud|edge)\b.*?--port (\d+)", re.M)
WITHOUT_SYSTEMD = {"systemctl enable --now": "systemctl enable", "systemctl status": ": systemctl status"}
"""In a chroot, systemctl can enable a unit but can neither start it nor ask for its state."""
PICTURE = "examples/owl.jpg"
NOT_RUN = {"x86": "make test-quickstart: not run here: ", "arm64": "make test-quickstart-arm: not run here: "}
PROBES = (
    ("start processes in namespaces of their own", ["true"]),
    ("mount file systems", ["mount", "-t", "tmpfs", "none", "/mnt"]),
)
NO_BINFMT = "this kernel has no binfmt_misc in user namespaces (Linux 6.7)"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
BINFMT_MOUNT = ["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)]
BINFMT_AARCH64 = (
    rb":aeic-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    rb":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:F"
)
"""ELF files for ARM64 run in qemu. F: it is opened now, so that a root needs no copy."""
X86_NOT_RUN = ["systemctl enable --now: without --now", "systemctl status", "the confinement of the unit"]
ARM64_NOT_RUN = [
    "apt-get: its packages are unpacked",
    "pip: modules are not compiled",
    "2. Start a cloud: it runs on x86",
    "4. Keep it running",
]
SECONDS = 300.0
LEAST_BYTES = 10_000
"""A PNG of the first picture has more."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def steps(name: str) -> list[tuple[str, str]]:
    """The shell blocks of a quickstart page, in order, each with the heading that it is under."""
    parts = re.findall(r"^## ([^\n]*)$|^```sh\n(.*?)^```$", (PAGES / f"quickstart-{name}.md").read_text(), re.M | re.S)
    found, heading = [], ""
    for title, block in parts:
        heading = title or heading
        if block:
            found.append((heading, block))
    return found


def blocks(name: str) -> list[str]:
    """The shell blocks of a quickstart page, in order."""
    return [block for _, block in steps(name)]


def free_ports(ports: Iterable[str]) -> dict[str, str]:
    """A free port for each of these ports, all of them different."""
    with contextlib.ExitStack() as held:
        listening = {port: held.enter_context(socket.create_server(("127.0.0.1", 0))) for port in ports}
        return {port: str(one.getsockname()[1]) for port, one in listening.items()}


def in_use(port: str) -> bool:
    """Whether something listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def ready(port: int | str, process: subprocess.Popen[str]) -> None:
    """Wait until the service on a port is ready. ``SystemExit`` if its terminal ends or it takes too long."""
    end = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(OSError), _DIRECT.open(f"http://127.0.0.1:{port}/readyz", timeout=10):
            return
        if process.poll() is not None:
            raise SystemExit(f"the service on port {port} ended with exit code {process.returncode}")
        if time.monotonic() > end:
            raise SystemExit(f"within {SECONDS:.0f} s nothing was ready on port {port}")
        time.sleep(0.2)


@dataclass(frozen=True)
class Machine:
    """Where the blocks of a page run.

    ``shell`` is the command to which a block is appended and ``environment`` that of the command. ``home`` is the
    folder in which blocks run, as this process sees it. ``words`` replaces words of the page.
    """

    shell: list[str]
    environment: Mapping[str, str]
    home: Path
    words: dict[str, str] = field(default_factory=dict)

    def command(self, block: str) -> str:
        """A block with the words of this machine."""
        for old, new in self.words.items():
            block = new.join(re.split(rf"(?<![\w-]){re.escape(old)}(?![\w-])", block))
        return block

    def start(self, block: str, **streams: Any) -> subprocess.Popen[str]:
        """A block in a terminal of its own."""
        command = [*self.shell, self.command(block)]
        return subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            preexec_fn=_take_signals,
            **streams,
        )

    def run(self, block: str) -> str:
        """What a block printed. ``SystemExit`` if one of its commands fails."""
        with self.start(block, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            printed, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"exit code {process.returncode} of:\n{block}\n{printed[-3000:]}")
        return printed


def _take_signals() -> None:
    """As in a terminal: a job that a shell runs in the background ignores Ctrl-C, and so would its children."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C in a terminal. ``SystemExit`` if the service does not end; then it is killed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise SystemExit("a service did not end within 60 s of Ctrl-C") from None


@contextlib.contextmanager
def step(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Say what begins, and add up how long it took."""
    say(f"{name} ...")
    started = time.monotonic()
    yield
    seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 1)


def follow(page: list[tuple[str, str]], machine: Machine, seconds: dict[str, float]) -> dict[str, Any]:
    """Run every block in order and check the first picture; what was seen.

    A block that starts a service keeps its terminal and is followed by the next one when the service is ready. The edge
    is interrupted before a block that calls systemctl, as the page says. ``SystemExit`` at the first block that fails,
    and if no picture was delivered, decoded and fetched.
    """
    terminals: dict[str, subprocess.Popen[str]] = {}
    answer: dict[str, Any] = {}
    picture: bytes | None = None
    machine = Machine(machine.shell, machine.environment, machine.home, dict(machine.words))
    try:
        for heading, block in page:
            with step(heading, seconds):
                if "systemctl" in block and "edge" in terminals:
                    interrupt(terminals.pop("edge"))
                if service := SERVICE.search(block):
                    name, port = service.groups()
                    terminals[name] = machine.start(block, stdout=sys.stderr)
                    ready(machine.command(port), terminals[name])
                    continue
                printed = machine.run(block)
                if shown := re.search(r'^\{.*"state":.*\}', printed, re.M):
                    answer = json.loads(shown.group())
                    machine.words["ID"] = answer["id"]
                if kept := re.search(r"^curl .*(?:-o|--output) (\S+)", block, re.M):
                    picture = (machine.home / kept.group(1)).read_bytes()
    finally:
        for terminal in terminals.values():
            interrupt(terminal)
    if answer.get("state") != "delivered" or answer["bytes"] > 1000:
        raise SystemExit(f"no picture was delivered within 1,000 bytes: {answer}")
    if picture is None or len(picture) < LEAST_BYTES or not picture.startswith(b"\x89PNG"):
        raise SystemExit(f"the page fetched no picture: {picture[:200] if picture else picture!r}")
    return {"id": answer["id"], "blocks": len(page), "frame_bytes": answer["bytes"], "picture_bytes": len(picture)}


def repository(folder: Path) -> None:
    """A repository with the files of this checkout, committed or not."""
    git = ["git", "-c", "safe.directory=*", "-c", "user.name=newcomer", "-c", "user.email=newcomer@localhost"]
    listed = [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, names)):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for command in ("init --quiet --initial-branch=main", "add --all", "commit --quiet --message=checkout"):
        subprocess.run([*git, *command.split()], cwd=folder, check=True)


def share(root: Path, emulated: bool = False) -> None:
    """Give a root the kernel's file systems, and the package index and certificates of this machine."""
    for name in ("dev", "proc", "sys"):
        (root / name).mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    # An ARM64 build of ONNX Runtime that finds an x86 processor in /sys crashes on import.
    for name in ("dev",) if emulated else ("dev", "sys"):
        subprocess.run(["mount", "--rbind", f"/{name}", root / name], check=True)
    paths = ["/etc/pip.conf", "/etc/xdg/pip", "/etc/ssl/certs", *os.environ.get("PIP_FIND_LINKS", "").split()]
    for path in (Path(path) for path in paths):
        inside = root / path.relative_to("/")
        if path.is_dir():
            inside.mkdir(parents=True, exist_ok=True)
        elif path.exists():
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch()
        else:
            continue
        subprocess.run(["mount", "--bind", "-o", "ro", path, inside], check=True)
    for name in ("resolv.conf", "hosts"):
        shutil.copy(f"/etc/{name}", root / "etc" / name)


def chroot(root: Path, *options: str) -> list[str]:
    return ["chroot", *options, str(root), "env"]


def unit_starts(root: Path, ports: dict[str, str]) -> None:
    """Check the unit of the page, and start its command with its user and its settings."""
    path = "/etc/systemd/system/aeic-edge.service"
    subprocess.run([*chroot(root), "systemd-analyze", "verify", path], check=True, stdout=sys.stderr)
    unit = dict(line.split("=", 1) for line in (root / path[1:]).read_text().splitlines() if re.match(r"\w+=", line))
    enabled = root / "etc/systemd/system/multi-user.target.wants/aeic-edge.service"
    if not enabled.is_symlink():
        raise SystemExit("systemctl has not enabled the unit")
    state = f"/var/lib/{unit['StateDirectory']}"
    owned = ["install", "-d", "-m", unit["StateDirectoryMode"], "-o", unit["User"], state]
    subprocess.run([*chroot(root), *owned], check=True)
    settings = (root / unit["EnvironmentFile"][1:]).read_text().split()
    settings += re.findall(r"^Environment=(.*)$", (root / path[1:]).read_text(), re.M)
    port = ports.get("8080", "8080")
    environment = ["--ignore-environment", f"AEIC_EDGE_PORT={port}", *" ".join(settings).split()]
    command = [*chroot(root, f"--userspec={unit['User']}"), *environment, *unit["ExecStart"].split()]
    process = subprocess.Popen(command, stdout=sys.stderr, text=True, start_new_session=True)
    try:
        ready(port, process)
    finally:
        interrupt(process)


def fresh_root(name: str) -> Path:
    """An empty folder in memory, which is gone with this process."""
    root = WORK / name
    root.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g,mode=755", "debian", root], check=True)
    return root


def shell_in(root: Path, home: str, *options: str) -> list[str]:
    """The command that runs a block in a root, with these options of chroot."""
    return [*chroot(root, *options), f"--chdir={home}", "bash", "-ec"]


def environment_of(user: str, home: str) -> dict[str, str]:
    """The variables of a login, and those of this machine for pip and for proxies."""
    path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    own = {name: text for name, text in os.environ.items() if re.search(r"^(PIP|SSL)_|_(proxy|PROXY)$", name)}
    return {"HOME": home, "USER": user, "PATH": path, "LANG": "C.UTF-8", **own}


def x86(seconds: dict[str, float]) -> dict[str, Any]:
    """The whole page for x86."""
    page = steps("x86")
    ports = free_ports(filter(in_use, PORTS))
    words = {REPOSITORY: "/srv/aeic", **WITHOUT_SYSTEMD, **ports}
    with step("unpack Debian", seconds):
        root = fresh_root("root")
        subprocess.run(["tar", "-xf", WORK / "root.tar", "-C", root], check=True)
        share(root)
        repository(root / "srv" / "aeic")
        user = "useradd --create-home --shell=/bin/bash newcomer"
        subprocess.run([*chroot(root), *user.split()], check=True)
        kept = 'Defaults env_keep += "PIP_* SSL_* *_proxy *_PROXY"'
        (root / "etc" / "sudoers.d" / "newcomer").write_text(f"newcomer ALL=(ALL) NOPASSWD: ALL\n{kept}\n")
    installed = [name for name in ("python3", "git", "curl") if (root / "usr" / "bin" / name).exists()]
    assert not installed, f"this Debian is not fresh: it has {installed}"
    home = "/home/newcomer"
    shell = shell_in(root, home, "--userspec=newcomer")
    machine = Machine(shell, environment_of("newcomer", home), root / home[1:], words)
    seen = follow(page, machine, seconds)
    with step("the unit", seconds):
        unit_starts(root, ports)
    return {**seen, "ports_replaced": len(ports), "not_run": X86_NOT_RUN}


def arm64(seconds: dict[str, float]) -> dict[str, Any]:
    """The first step of the page for the Raspberry Pi and its first picture, with the cloud on x86."""
    (heading, install), *others = steps("raspberry-pi")
    commands = [line for line in install.splitlines() if "apt-get" not in line]
    page = [(heading, "\n".join(commands))]
    page += [("encode", f"/opt/aeic/bin/aeic encode /opt/aeic/src/{PICTURE} owl.aeic --preset 1kB")]
    page += [("decode", "/opt/aeic/bin/aeic decode owl.aeic decoded.png")]
    page += [(name, block) for name, block in others if name.startswith("3.")]
    words = {REPOSITORY: "/srv/aeic", **free_ports(PORTS)}
    with step("unpack Debian", seconds):
        root = fresh_root("arm64")
        copy = ["cp", "--recursive", "--no-dereference", "--preserve=mode", f"{WORK / 'arm64-packages'}/.", str(root)]
        subprocess.run(copy, check=True)
        subprocess.run(BINFMT_MOUNT, check=True)
        (BINFMT / "register").write_bytes(BINFMT_AARCH64)
        for folder in ("root", "usr/local/bin"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "usr/local/bin/sudo").write_text('#!/bin/sh\nexec "$@"\n')
        (root / "usr/local/bin/sudo").chmod(0o755)
        share(root, emulated=True)
        repository(root / "srv" / "aeic")
    # Compiling every module takes minutes here. pip calls this option `--no-compile` and wants "no" for it.
    environment = environment_of("root", "/root") | {"QEMU_CPU": "cortex-a72", "PIP_NO_COMPILE": "no"}
    machine = Machine(shell_in(root, "/root"), environment, root / "root", words)
    assert machine.run("uname -m") == "aarch64\n", "the programs of this root are not emulated"
    ours = [sys.executable, "-m", "aeic_tools.cli"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AEIC_CLOUD_DATA_DIR": str(root / "srv" / "cloud")}
    ports = ["--port", words["8081"], "--grpc-port", words["9090"]]
    cloud = subprocess.Popen(
        [*ours, "cloud", *ports], env=environment, stdout=sys.stderr, text=True, start_new_session=True
    )
    try:
        ready(words["8081"], cloud)
        seen = follow(page, machine, seconds)
        with _DIRECT.open(f"http://127.0.0.1:{words['8081']}/v1/frames/{seen['id']}/bitstream", timeout=60) as answer:
            delivered = answer.read()
    finally:
        interrupt(cloud)
    here = root / "srv" / "x86.aeic"
    with step("encode on x86", seconds):
        encode = [*ours, "encode", str(ROOT / PICTURE), str(here), "--preset", "1kB"]
        subprocess.run(encode, env=environment, check=True, stdout=sys.stderr)
    frames = {"by hand": (root / "root" / "owl.aeic").read_bytes(), "by the service": delivered}
    for name, frame in frames.items():
        if frame != here.read_bytes():
            raise SystemExit(f"the frame that ARM64 made {name} differs from that of x86")
    return {**seen, "same_bytes_as_x86": list(frames), "not_run": ARM64_NOT_RUN}


def namespaces(name: str) -> list[str]:
    """The command that gives a run its own mounts and processes, and for ARM64 its own binfmt_misc."""
    user = ["--user", "--map-root-user"] if name == "arm64" else []
    return ["unshare", *user, "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]


def obstacle(name: str) -> str | None:
    """Why this machine cannot follow a page; None if it can."""
    if os.geteuid():
        return "it needs root"
    for what, tried in PROBES:
        if subprocess.run([*namespaces("x86"), *tried], capture_output=True).returncode:
            return f"this machine does not allow root to {what}"
    if name == "arm64" and subprocess.run([*namespaces(name), *BINFMT_MOUNT], capture_output=True).returncode:
        return NO_BINFMT
    return None


def make_root(name: str) -> None:
    """The packages of Debian, once."""
    WORK.mkdir(parents=True, exist_ok=True)
    if name == "x86":
        fresh = ["--include=sudo,ca-certificates"]
        subprocess.run([ROOT / "deploy" / "debian_root.sh", WORK / "root.tar", *fresh], check=True)
    elif not (WORK / "arm64-packages").exists():
        packages = {"PACKAGES": "python3-venv,git,curl,ca-certificates"}
        partial = WORK / "arm64-packages.part"
        shutil.rmtree(partial, ignore_errors=True)
        make = [ROOT / "tests" / "exact" / "arm64_root.sh", partial]
        subprocess.run(make, env=os.environ | packages, check=True, stdout=sys.stderr)
        shutil.rmtree(partial / "dev")  # it gets that of this machine; a user namespace cannot copy devices
        partial.rename(WORK / "arm64-packages")


def main() -> int:
    """The exit code: 0 if the page can be followed to its end, or if this machine cannot try."""
    parser = argparse.ArgumentParser(description="Follow a quickstart page in a fresh Debian.")
    parser.add_argument("--arm64", action="store_true", help="the page for the Raspberry Pi, emulated")
    parser.add_argument("--probe", action="store_true", help="only say why this machine cannot do that, if so")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    name = "arm64" if options.arm64 else "x86"
    seconds: dict[str, float] = {}
    if options.inside:
        started = time.monotonic()
        seen = arm64(seconds) if options.arm64 else x86(seconds)
        total = round(time.monotonic() - started, 1)
        print(json.dumps({"bench": "quickstart", "page": name, **seen, "seconds": seconds, "total": total}), flush=True)
        return 0
    reason = obstacle(name)
    if not reason and not options.probe and not shutil.which("debootstrap"):
        reason = "debootstrap is missing"
    if reason:
        print(NOT_RUN[name] + reason, flush=True)
    if reason or options.probe:
        return 0
    make_root(name)
    again = [sys.executable, __file__, "--inside", *(["--arm64"] if options.arm64 else [])]
    # unshare ignores SIGTERM. An exception here kills it, and with it everything in its namespaces.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return subprocess.run([*namespaces(name), *again]).returncode


if __name__ == "__main__":
    sys.exit(main())
