"""Records and received pictures for the edge's spool."""

from __future__ import annotations

import random
import time
import zlib
from uuid import UUID

from aeic.identifiers import new_id
from edge_encoder.spool.record import ReceivedPicture, Record, State
from edge_encoder.spool.spool import Spool


def new_record(number: int = 0, *, size: int = 1500, priority: int = 0) -> Record:
    """A frame as the spool keeps it; its ``size`` bytes depend on ``number`` only."""
    data = random.Random(number).randbytes(size)
    now = int(time.time() * 1000)
    return Record(new_id(), data, 768, 512, 1, priority, now, now, zlib.crc32(data), "mast-7")


def put(spool: Spool, record: Record) -> None:
    """Put ``record`` into the spool and wait until it is acknowledged."""
    spool.put(record).result(10)


def state_of(spool: Spool, id: UUID) -> State:
    """The state of a frame that the spool knows."""
    entry = spool.get(id)
    assert entry is not None, f"the spool does not know {id}"
    return entry.state


def new_received(
    number: int = 0, *, size: int = 20_000, priority: int = 0, created_ms: int | None = None
) -> ReceivedPicture:
    """A picture as the spool keeps it before it is encoded; its ``size`` bytes depend on ``number`` only."""
    data = random.Random(number).randbytes(size)
    now = int(time.time() * 1000) if created_ms is None else created_ms
    return ReceivedPicture(new_id(), data, zlib.crc32(data), 96, 64, priority, now, 7, "mast-7", "r1", None, 900)


def made_of(received: ReceivedPicture) -> Record:
    """The frame that stands for ``received`` after its encoding."""
    return Record(
        received.id, received.picture[:900], 96, 64, 0, received.priority, received.created_ms, 7, received.picture_crc
    )
