"""What both sides have in common where a device computes the entropy model and the CPU checks it.

Used by the edge (edge_encoder/encoding/gpu_entropy.py) and the cloud (aeic_nets/runtime/device_entropy.py). What
:func:`lacks_memory` knows is used wherever a device or ONNX Runtime may run out of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

CHECK_EVERY = 256
"""One in so many frames is checked in service."""
MOST_SIZES = 64
"""Sizes of latents that are remembered as checked, least recently used first to go."""
CHECKS_AT_ONCE = 16
FRAMES_PER_CHECK = 16
"""Known answers cost as much as three frames on the CPU. So many sizes are checked as soon as they come again; later
ones wait until so many frames have come for each check, since a sender may invent sizes without end."""
_NO_MEMORY = (
    "bad_alloc",
    "failed to allocate memory",
    "is smaller than requested bytes",  # ONNX Runtime at gpu_mem_limit
    "out of memory",
    "status_alloc_failed",  # cuBLAS and cuDNN
)


def lacks_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory did not suffice. The texts are of ONNX Runtime, torch and CUDA, which have no
    class in common. An "illegal memory access" is another matter: the device does not survive it."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)


class CheckAllowance:
    """How many checks of known answers may be made: see :data:`FRAMES_PER_CHECK`. Not safe between threads."""

    def __init__(self) -> None:
        self._left = CHECKS_AT_ONCE * FRAMES_PER_CHECK

    def earn(self, frames: int = 1) -> None:
        """``frames`` have come."""
        self._left = min(self._left + frames, CHECKS_AT_ONCE * FRAMES_PER_CHECK)

    def take(self) -> bool:
        """Whether a check may be made now; it then counts as made."""
        if self._left < FRAMES_PER_CHECK:
            return False
        self._left -= FRAMES_PER_CHECK
        return True


@dataclass
class Tally:
    """What happened since it was last taken. ``device`` and ``cpu`` count frames by what computed their results."""

    device: int = 0
    cpu: int = 0
    checked: int = 0
    mismatches: int = 0
