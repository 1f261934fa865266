"""Whether this machine has the driver of an NVIDIA GPU. Looks at files only, and loads nothing."""

from __future__ import annotations

import platform
from pathlib import Path

from aeic.errors import remedy

SIGNS = (
    "/proc/driver/nvidia/version",  # Linux
    "/dev/nvidiactl",  # containers
    "/dev/dxg",  # WSL2, whose driver is Windows'
    "/usr/lib/wsl/lib/libcuda.so.1",
    "/dev/nvgpu",  # Jetson
    "/dev/nvhost-gpu",
)
"""Any of these files is a sign. None proves that a GPU works: ask torch or ONNX Runtime, which take longer."""


def nvidia_driver(root: Path = Path("/")) -> str:
    """The first sign of an installed driver; empty if there is none."""
    return next((sign for sign in SIGNS if (root / sign.lstrip("/")).exists()), "")


def driver_version(root: Path = Path("/")) -> str:
    """What the driver says about its version on Linux, such as ``NVIDIA UNIX Open Kernel Module ... 580.65.06 ...``;
    empty elsewhere."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return ""
    return text.removeprefix("NVRM version:").strip()


def edge_runtime_remedy() -> str:
    """How to install an ONNX Runtime that uses this machine's GPU, for errors that name a missing one.

    On a Jetson, whose kernel is named ``...-tegra``, the extra ``edge-gpu`` brings no runtime (pyproject.toml).
    """
    if platform.machine() == "aarch64" and "tegra" in platform.release():
        return "install an ONNX Runtime for this JetPack, then the extra edge-base: see docs/how-to/jetson.md"
    return remedy("edge-gpu")
