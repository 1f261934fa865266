"""The quickstart pages: their commands from the second step on are run as they stand, with other ports and folders."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support.roots import ROOT

PAGES = ROOT / "docs" / "how-to"
NAMES = ("x86", "raspberry-pi", "jetson")


def blocks(name: str) -> list[str]:
    """The shell commands of a page, block by block."""
    text = (PAGES / f"quickstart-{name}.md").read_text()
    return [block.replace("\\\n", " ") for block in re.findall(r"```sh\n(.*?)```", text, re.S)]


def test_the_pages_differ_in_their_first_step_only() -> None:
    first, *others = (blocks(name)[1:] for name in NAMES)
    assert all(one == first for one in others) and len(first) == 4


def test_every_page_installs_what_the_unit_starts() -> None:
    unit = (ROOT / "deploy" / "aeic-edge.service").read_text()
    assert "ExecStart=/opt/aeic/bin/python" in unit and "EnvironmentFile=/etc/aeic/edge.env" in unit
    for name in NAMES:
        text = (PAGES / f"quickstart-{name}.md").read_text()
        assert "-m venv /opt/aeic\n" in text and "/etc/aeic/edge.env" in text and "User=aeic" in unit


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.skipif(shutil.which("curl") is None, reason="the pages use curl")
def test_from_the_cloud_to_the_first_picture(tmp_path: Path) -> None:
    _, cloud, edge, curl, _ = blocks("x86")
    ports = {"8081": free_port(), "9090": free_port(), "8080": free_port()}

    def run(line: str) -> subprocess.Popen[str]:
        for old, new in ports.items():
            line = re.sub(rf"\b{old}\b", str(new), line)
        line = line.replace("/tmp/", f"{shlex.quote(str(tmp_path))}/")  # first: the clone itself may be there
        line = line.replace("/opt/aeic/bin/aeic", f"{shlex.quote(sys.executable)} -m aeic_tools.cli")
        line = line.replace("/opt/aeic/src", shlex.quote(str(ROOT)))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AEIC_")}
        environment = {**clean, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            ["sh", "-c", line], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    (cloud_line,) = [line for line in cloud.splitlines() if "pip install" not in line]
    services = [run(cloud_line), run(edge)]
    try:
        deadline = time.monotonic() + 60
        for port in (ports["8081"], ports["8080"]):
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                        break
                except OSError:
                    assert time.monotonic() < deadline and all(one.poll() is None for one in services)
                    time.sleep(0.1)
        out, _ = run(curl).communicate(timeout=60)
        answer = json.loads(out)
        assert answer["state"] == "delivered" and answer["bytes"] <= 1000
        frames = json.load(urllib.request.urlopen(f"http://127.0.0.1:{ports['8081']}/v1/frames", timeout=10))
        assert answer["id"] in json.dumps(frames)
    finally:
        for one in services:
            os.killpg(one.pid, signal.SIGTERM)
        for one in services:
            one.communicate(timeout=30)
