"""Clocks that a test sets."""

from __future__ import annotations

from edge_encoder.spool.system import System


class Clocks(System):
    """A machine with the real file system and clocks that stand still unless they are moved."""

    def __init__(self) -> None:
        self.wall, self.boot, self.start = 1_795_900_000.0, 100.0, "first start"

    def wall_seconds(self) -> float:
        return self.wall

    def boot_seconds(self) -> float:
        return self.boot

    def boot_id(self) -> str:
        return self.start

    def run(self, seconds: float) -> None:
        """Time passes."""
        self.wall += seconds
        self.boot += seconds

    def reboot(self, *, off: float, wall_error: float = 0.0) -> None:
        """The machine is switched off for `off` seconds; then its wall clock is wrong by `wall_error`."""
        self.wall += off + wall_error
        self.boot, self.start = 5.0, self.start + "'"
