"""A service as a process that is killed and started again on the same ports (soak.py)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.roots import ROOT


@dataclass
class Process:
    """A service that is started again on the same ports after every death."""

    module: str
    environment: dict[str, str]
    log: Path
    ports: dict[str, str] = field(default_factory=dict)
    ready: dict[str, str] = field(default_factory=dict)
    starts: int = 0
    peak_mb: float = 0.0
    control: Path | None = None
    """Of faulty_process.py, which then runs the module."""

    async def start(self) -> None:
        """Until it is ready."""
        await self.spawn()
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.module} did not start; see {self.log}")
        self.ready = json.loads(line)
        self.starts += 1

    async def spawn(self) -> None:
        """Without waiting for anything."""
        through = ["tests.support.services.faulty_process", str(self.control)] if self.control else []
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AEIC_")}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *through, self.module,
            cwd=ROOT,
            env={**clean, **self.environment, **self.ports},
            stdout=asyncio.subprocess.PIPE,
            stderr=self.log.open("ab"),
        )  # fmt: skip

    async def answers(self) -> bool:
        """Whether it became ready, and did not end before."""
        assert self.process.stdout is not None
        return bool(await self.process.stdout.readline())

    async def kill(self) -> None:
        self.measure()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    def measure(self) -> None:
        with contextlib.suppress(psutil.Error):
            self.peak_mb = max(self.peak_mb, psutil.Process(self.process.pid).memory_info().rss / 2**20)

    async def stop(self) -> int:
        self.measure()
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 60)
