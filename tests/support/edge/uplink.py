"""A spool and its uplink without the rest of the edge."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

from edge_encoder.metrics import Metrics
from edge_encoder.spool.record import Record
from edge_encoder.spool.spool import Spool
from edge_encoder.uplink.uplink import Identity, Uplink
from tests.support.edge.fakes import FakeCloud, settings
from tests.support.edge.spooled import new_record

DIGEST = b"d" * 32


@contextlib.asynccontextmanager
async def shipping(folder: Path, address: str, **changes: object) -> AsyncIterator[tuple[Spool, Uplink]]:
    """A spool in ``folder`` whose uplink sends to ``address``."""
    loop = asyncio.get_running_loop()
    holder: list[Uplink] = []

    def wake() -> None:
        if holder:
            holder[0].wake()

    def changed(*_: object) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(wake)

    spool = Spool(folder, on_change=changed)
    config = settings(folder, cloud_address=address, **changes)
    uplink = Uplink(spool, config, Metrics(), Identity(DIGEST, "test"))
    holder.append(uplink)
    task = asyncio.create_task(uplink.run())
    try:
        yield spool, uplink
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(spool.close)


async def put_frames(spool: Spool, count: int, size: int = 1500) -> list[Record]:
    """Put ``count`` random frames into the spool and wait until all are acknowledged."""
    records = [new_record(random.randrange(1 << 30), size=size) for _ in range(count)]
    await asyncio.gather(*(asyncio.wrap_future(spool.put(record)) for record in records))
    return records


def exactly(cloud: FakeCloud, records: list[Record]) -> bool:
    """Whether the cloud has these frames, bit for bit, and no other."""
    return cloud.frames == {record.id: record.data for record in records}
