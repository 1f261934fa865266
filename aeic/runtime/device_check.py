"""What both sides have in common where a device computes the entropy model and the CPU checks it.

Used by the edge (edge_encoder/encoding/gpu_entropy.py) and the cloud (aeic_nets/runtime/device_entropy.py).
"""

from __future__ import annotations

from dataclasses import dataclass

CHECK_EVERY = 256
"""One in so many frames is checked in service."""
MOST_SIZES = 64
"""Sizes of latents that are remembered as checked, least recently used first to go."""


@dataclass
class Tally:
    """What happened since it was last taken. ``device`` and ``cpu`` count frames by what computed their results."""

    device: int = 0
    cpu: int = 0
    checked: int = 0
    mismatches: int = 0
