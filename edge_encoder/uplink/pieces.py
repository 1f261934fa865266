"""The size of the pieces in which a picture file is sent beside frames."""

from __future__ import annotations

from edge_encoder.answers.hourly_budget import LEAST_PIECE_BYTES

LEAST_BYTES = LEAST_PIECE_BYTES
MOST_BYTES = 1 << 15
SLOW_SECONDS = 1.5
QUICK_SECONDS = 0.75


class PieceSize:
    """`bytes` of the next piece, from LEAST_BYTES to MOST_BYTES.

    A frame that arrives waits for at most one piece, so a piece should take no longer than SLOW_SECONDS: the size is
    halved after an answer that took longer and doubled after one that took less than QUICK_SECONDS. Each stream begins
    with LEAST_BYTES, and a piece that was not answered leads back to that. Pure logic: no clock.
    """

    def __init__(self) -> None:
        self.bytes = LEAST_BYTES

    def answered(self, seconds: float) -> None:
        """A piece was answered `seconds` after it was sent."""
        if seconds > SLOW_SECONDS:
            self.bytes = max(LEAST_BYTES, self.bytes // 2)
        elif seconds < QUICK_SECONDS:
            self.bytes = min(MOST_BYTES, self.bytes * 2)

    def unanswered(self) -> None:
        """A piece was not answered in time."""
        self.bytes = LEAST_BYTES
