"""Spools whose process was killed or that were closed, and their bytes, for tests that damage them."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from aeic_service import wal
from edge_encoder.spool.record import ReceivedPicture, Record
from edge_encoder.spool.spool import Spool
from tests.support.edge.spooled import new_received, new_record, put


def killed(
    folder: Path, records: int = 300, received: int = 0
) -> tuple[dict[uuid.UUID, Record], list[ReceivedPicture]]:
    """The files of a spool whose process was killed, so that its log is full; what it had promised."""
    spool = Spool(folder.with_name("live"))
    kept = {record.id: record for record in (new_record(number) for number in range(records))}
    pictures = [new_received(number, size=9000) for number in range(received)]
    for record in kept.values():
        put(spool, record)
    for picture in pictures:
        spool.receive(picture).result(10)
    folder.mkdir()
    for path in folder.with_name("live").glob("spool.sqlite3*"):
        if not path.name.endswith("-shm"):
            shutil.copyfile(path, folder / path.name)
    spool.close()
    return kept, pictures


def closed(folder: Path, count: int = 8, received: int = 0) -> tuple[bytearray, dict[uuid.UUID, Record]]:
    """The file of a spool that was closed, and what it had promised."""
    kept, _ = killed(folder, count, received)
    Spool(folder).close()  # moves the log into the database
    return bytearray((folder / "spool.sqlite3").read_bytes()), kept


def present(spool: Spool) -> dict[uuid.UUID, Record]:
    return {record.id: record for record in spool.lease(10_000)}


def frame(raw: bytearray, number: int) -> memoryview:
    """Frame `number` of a log, counted from its end if negative."""
    size = 24 + 4096
    start = 32 + number * size if number >= 0 else len(raw) + number * size
    return memoryview(raw)[start : start + size]


def seal(raw: bytearray, number: int, pages: int) -> None:
    """Makes a frame (counted from the end) a whole commit of a database with so many pages."""
    one, before = frame(raw, number), bytes(frame(raw, number - 1)[16:24])
    one[4:8] = pages.to_bytes(4, "big")
    one[16:24] = wal._checksum(before, one[:8], ">" if raw[3] & 1 else "<", one[24:])
