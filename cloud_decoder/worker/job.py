"""One bitstream on its way through the worker, shared by all callers and stored frames that have the same bytes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from aeic.bitstream import Frame
from aeic.profiles import LATENT_STRIDE
from cloud_decoder.decode_backend import Decoded
from cloud_decoder.store.records import DEMAND_PRIORITY, Lease, StoredFrame
from cloud_decoder.tiling import Tile, TileAssembler, synthesis_cost
from cloud_decoder.worker.batcher import Bucket, WorkItem

__all__ = ["DEMAND_PRIORITY", "DecodeJob", "Decoded", "leases_of"]


@dataclass(eq=False)
class DecodeJob:
    """``digest`` (SHA-256 of the bitstream, hex) identifies it. It is dropped once it is no longer :attr:`wanted`."""

    digest: str
    data: bytes
    frame: Frame
    priority: int
    arrived: float  # monotonic seconds, like deadline
    done: asyncio.Future[Decoded]
    deadline: float = math.inf
    rows: list[StoredFrame] = field(default_factory=list)  # stored frames of this content, leased by this worker
    leases: dict[int, Lease] = field(default_factory=dict)  # of the rows, by seq
    begun: bool = False  # its decoding has begun, and an attempt is counted
    waiters: int = 0
    keep: bool = False  # its picture goes to the cache
    pinned: bool = False  # decode it although no caller waits: the caller will ask again
    cost: int = 0
    assembler: TileAssembler | None = None
    latents_digest: str = ""
    outstanding: int = 0  # tiles that wait for the device or are on it
    ready_at: float = 0.0
    deaths: int = 0  # decoder processes that died while they had this job alone
    failed: bool = False  # its error has been reported; its other tiles may still be on a device
    timings: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cost = synthesis_cost(self.frame)

    @property
    def wanted(self) -> bool:
        """Whether a caller waits for the picture or a stored frame needs it."""
        return self.waiters > 0 or self.pinned or any(row.wanted for row in self.rows)

    @property
    def suspect(self) -> bool:
        """Whether a service has ended while one of its frames was being decoded. Nothing is decoded beside it."""
        return any(row.attempts for row in self.rows)

    @property
    def effective_deadline(self) -> float:
        """Infinite for stored frames, which are decoded however late."""
        return math.inf if self.rows or self.pinned else self.deadline

    def entropy_item(self) -> WorkItem[str]:
        """The job as an item that waits for entropy decoding."""
        return WorkItem(
            self.digest, (self.frame.fingerprint,), self.cost, self.priority, self.effective_deadline, self.arrived
        )

    def tile_items(self) -> list[WorkItem[tuple[str, Tile]]]:
        """The next row of its tiles as items that wait for the device."""
        if self.assembler is None:
            return []
        shape: Bucket = (self.frame.fingerprint, *self.assembler.shape)
        if self.suspect:
            shape = (*shape, self.digest)
        cost = self.assembler.shape[0] * self.assembler.shape[1] * LATENT_STRIDE**2
        return [
            WorkItem((self.digest, tile), shape, cost, self.priority, self.effective_deadline, self.arrived, tile.row)
            for tile in self.assembler.tiles()
        ]


def leases_of(jobs: Iterable[DecodeJob]) -> list[Lease]:
    """The leases of all stored frames of these jobs."""
    return [lease for job in jobs for lease in job.leases.values()]
