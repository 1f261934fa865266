"""The share of the machine that other processes used during a measurement, which makes its results unreliable."""

from __future__ import annotations

import contextlib
import time

import psutil


class Others:
    """Measures from its creation, or from the last call of :meth:`share`."""

    def __init__(self) -> None:
        self._before = self._now()

    def share(self) -> float:
        """The share of all cores, 0 to 1, that the kernel and processes other than this one and its descendants
        used."""
        (moment, busy, own), self._before = self._before, self._now()
        seconds = (self._before[0] - moment) * (psutil.cpu_count() or 1)
        return max(0.0, (self._before[1] - busy) - (self._before[2] - own)) / seconds

    def _now(self) -> tuple[float, float, float]:
        times, own = psutil.cpu_times(), 0.0
        this = psutil.Process()
        for one in (this, *this.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                spent = one.cpu_times()
                own += spent.user + spent.system + spent.children_user + spent.children_system
        return time.monotonic(), sum(times) - times.idle - getattr(times, "iowait", 0.0), own
