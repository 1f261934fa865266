"""The parts of a fleet as processes of this machine: each can be killed, stopped gently and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.roots import ROOT


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port that front ends can share with ``SO_REUSEPORT``. It is bound and does not listen."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


class Member:
    """``python -m cloud_decoder`` with these settings (``AEIC_CLOUD_*`` without the prefix)."""

    def __init__(self, name: str, folder: Path, core: int | None = None, **settings: object) -> None:
        self.name, self._folder, self._core = name, folder, core
        given = {f"AEIC_CLOUD_{key.upper()}": str(value) for key, value in settings.items()}
        threads = {"OMP_NUM_THREADS": "1", "AEIC_CLOUD_THREADS": "1", "AEIC_CLOUD_ENTROPY_WORKERS": "1"}
        own = {"AEIC_CLOUD_DATA_DIR": str(folder / name), "PYTHONPATH": str(ROOT)}
        self._environment = os.environ | threads | own | given
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.ready: dict[str, str] = {}

    async def start(self) -> None:
        """Up and ready; tried again while the database is away."""
        while True:
            self.starts += 1
            log = (self._folder / f"{self.name}.log").open("ab")
            command = [sys.executable, "-m", "cloud_decoder"]
            if self._core is not None:
                command = ["taskset", "-c", str(self._core), *command]
            self.process = subprocess.Popen(
                command, env=self._environment, cwd=self._folder, stdout=subprocess.PIPE, stderr=log
            )
            log.close()
            assert self.process.stdout is not None
            line = await asyncio.to_thread(self.process.stdout.readline)
            if line:
                self.ready = json.loads(line)
                return
            self.process.wait()
            await asyncio.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.send_signal(signal.SIGCONT)
        return await asyncio.to_thread(self.process.wait, 60)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None
