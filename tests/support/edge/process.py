"""An edge service in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

from tests.support.roots import ROOT


class EdgeProcess:
    """Starts the edge on a free port; ``ready`` is the line that it prints when it is up."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AEIC_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge_encoder", "--port", "0", *arguments],
            cwd=ROOT,
            env={**clean, "AEIC_EDGE_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the edge ended with {self.process.wait()}: {self.process.stderr.read()}")
        self.ready: dict[str, str] = json.loads(line)
        self.url = self.ready["http"]

    def stop(self, number: int) -> tuple[int, str]:
        """Send the signal ``number``; the exit code and everything that the edge logged."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, log


StartEdge = Callable[..., EdgeProcess]
