"""Pictures and running services for the edge's tests."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def picture(
    width: int = 96, height: int = 64, *, form: str = "JPEG", mode: str = "RGB", seed: int = 0, **save
) -> bytes:
    """A smooth random picture as a file."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(out, form, **save)
    return out.getvalue()


class Edge:
    """An edge service in a process of its own."""

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
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the edge ended with {self.process.wait()}: {self.process.stderr.read()}")
        self.ready = json.loads(line)
        self.url: str = self.ready["http"]

    def stop(self, number: int) -> tuple[int, str]:
        """Sends the signal; exit code and everything it logged."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, log


@pytest.fixture
def start_edge(tiny_bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Edge]]:
    """Starts edges on free ports with the tiny bundle; whatever still runs at the end is killed."""
    running: list[Edge] = []

    def start(*arguments: str, **environment: str) -> Edge:
        environment = {"AEIC_BUNDLE": str(tiny_bundle), "AEIC_EDGE_DATA_DIR": str(tmp_path / "spool"), **environment}
        running.append(Edge(*arguments, **environment))
        return running[-1]

    yield start
    for edge in running:
        if edge.process.poll() is None:
            edge.process.kill()
        edge.process.communicate()
