"""The state of one source: what it does now, since when, and when its last picture came."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

SourceState = Literal["starting", "up", "down", "ended"]


@dataclass(slots=True)
class SourceStatus:
    """The source's part of /v1/status. `state`: starting, up (it delivers, or its folder is scanned), down (`detail`
    says why), or ended (a video file that was read); `since` and `last_picture` are seconds since 1970."""

    name: str
    kind: Literal["camera", "folder", "mqtt"]
    state: SourceState = "starting"
    detail: str = ""
    since: float = field(default_factory=time.time)
    last_picture: float | None = None
    taken: int = 0
    refused: int = 0
    failures_in_a_row: int = 0
    _taken_at: float | None = field(default=None, repr=False)  # monotonic

    def set(self, state: SourceState, detail: str = "") -> bool:
        """Changes the state; False if it was the same already, with the same detail."""
        if (self.state, self.detail) == (state, detail):
            return False
        if self.state != state:
            self.since = time.time()
        self.state, self.detail = state, detail
        return True

    def took(self) -> None:
        """A picture of the source is in the spool."""
        self.taken += 1
        self.last_picture = time.time()
        self._taken_at = time.monotonic()

    @property
    def last_picture_age_seconds(self) -> float | None:
        """Seconds since the last picture, by a steady clock; None before the first."""
        return None if self._taken_at is None else time.monotonic() - self._taken_at

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        names = "name", "kind", "state", "detail", "taken", "refused", "failures_in_a_row"
        last = None if self.last_picture is None else round(self.last_picture, 3)
        shown = {name: getattr(self, name) for name in names}
        return {**shown, "since_unix": round(self.since, 3), "last_picture_unix": last}
