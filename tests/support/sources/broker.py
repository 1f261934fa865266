"""A broker for MQTT on loopback: Debian's mosquitto."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = shutil.which("mosquitto", path="/usr/bin:/usr/sbin:/usr/local/sbin") or ""


@dataclass
class Broker:
    """`start()` and `stop()` it as often as you like: its sessions and messages stay in the folder."""

    folder: Path
    port: int
    password: str = ""
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it listens."""
        lines = [f"listener {self.port} 127.0.0.1", "persistence true", f"persistence_location {self.folder}/"]
        if self.password:
            users = self.folder / "users"
            users.unlink(missing_ok=True)
            subprocess.run(["mosquitto_passwd", "-b", "-c", users, "box", self.password], check=True)
            lines += [f"password_file {users}", "allow_anonymous false", "user root"]
        else:
            lines += ["allow_anonymous true", "user root"]
        (self.folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self._process = subprocess.Popen(
            [PROGRAM, "-c", self.folder / "mosquitto.conf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < deadline and self._process.poll() is None
            time.sleep(0.02)

    def stop(self) -> None:
        """It writes its sessions to the folder first."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None


@contextlib.contextmanager
def broker(folder: Path, password: str = "") -> Iterator[Broker]:
    """A running broker; skips where there is none."""
    if not PROGRAM:
        pytest.skip("no mosquitto (Debian: mosquitto)")
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    made = Broker(folder, port, password)
    made.start()
    try:
        yield made
    finally:
        made.stop()
