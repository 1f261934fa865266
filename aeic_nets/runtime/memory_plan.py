"""How much memory a picture will take on its way through the torch decoder: planned before it starts."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from aeic.profiles import LATENT_STRIDE, PICTURE_MULTIPLE, Profile

BYTES_PER_VALUE = 12
"""At the widest place of the picture decoder, a group norm at full size, four tensors live at once: the input, its
normed and its activated values in float32, and those in the layer's own type."""
WORKSPACE = 1 << 28
"""For what libraries take beside it, whatever the picture's size."""
_CGROUP = Path("/sys/fs/cgroup")


class TooLargeForMemory(MemoryError):
    """The device has not the memory for this; the message names the size that fits."""


def activation_bytes(profile: Profile, pixels: int) -> int:
    """What ``pixels`` (padded, all pictures of a batch) take beside the weights."""
    sizes = profile.vae
    widest = max(sizes.widths[-2:])
    return BYTES_PER_VALUE * widest * pixels // sizes.patch**2 + WORKSPACE


def free_bytes(device: torch.device) -> int | None:
    """Free memory of the device; on a CPU, what the system or the container's limit leaves. None if unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        most, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        return min(free, max(0, most - used))
    except (OSError, ValueError):  # no cgroup of our own, or one without a limit
        return free


def capacity(profile: Profile, device: torch.device) -> int | None:
    """Pixels (padded, all pictures of a batch) that fit into the free memory of ``device``; None if unknown."""
    free = free_bytes(device)
    if free is None:
        return None
    per_pixel = activation_bytes(profile, 1 << 20) - WORKSPACE
    return max(0, free - WORKSPACE) * (1 << 20) // per_pixel


def check(profile: Profile, batch: int, height: int, width: int, device: torch.device) -> None:
    """``TooLargeForMemory`` if ``batch`` latents of (height, width) will not fit into the free memory of ``device``."""
    needed = activation_bytes(profile, batch * height * width * LATENT_STRIDE**2)
    free = free_bytes(device)
    if free is None or needed <= free:
        return
    side = math.isqrt(capacity(profile, device) or 0) // PICTURE_MULTIPLE * PICTURE_MULTIPLE
    fits = f"at most {side}x{side} pixels fit" if side else "no picture fits"
    what = f"{batch} of {width * LATENT_STRIDE}x{height * LATENT_STRIDE} pixels"
    raise TooLargeForMemory(
        f"{what} would take {needed / 1e9:.1f} GB, {device} has {free / 1e9:.1f} GB free: {fits} at once;"
        " decode in smaller tiles or batches, or free some memory"
    )
