"""Keeps all other work of a process off its GPUs while a CUDA graph is captured.

ONNX Runtime captures in the mode in which CUDA refuses, in every thread, whatever may wait for the device or reserve
memory on it: both the capture and the other thread's call would fail, and a failed call ends the use of the GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CaptureGate:
    """Any number of runs at a time, or one capture alone. A capture that waits comes before later runs.

    Neither may be entered inside the other.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._runs = 0
        self._captures = 0  # that wait or are in progress
        self._capturing = False

    @contextmanager
    def run(self) -> Iterator[None]:
        """Around every call that reaches a GPU, without a capture."""
        with self._changed:
            self._changed.wait_for(lambda: not self._captures)
            self._runs += 1
        try:
            yield
        finally:
            with self._changed:
                self._runs -= 1
                self._changed.notify_all()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Around a call that captures a graph."""
        with self._changed:
            self._captures += 1
        entered = False
        try:
            with self._changed:
                self._changed.wait_for(lambda: not (self._runs or self._capturing))
                entered = self._capturing = True
            yield
        finally:
            with self._changed:
                self._captures -= 1
                if entered:
                    self._capturing = False
                self._changed.notify_all()


GATE = CaptureGate()
"""The gate of this process."""
