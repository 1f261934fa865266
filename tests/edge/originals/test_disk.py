"""The service deletes originals while the disk has less space than the spool may still need."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.edge.in_process import edge
from tests.support.pictures import picture
from tests.support.waiting import until

SPOOL, RECEIVED = 1 << 20, 1 << 21


@pytest.mark.parametrize("short", [0, 1])
async def test_housekeeping_frees_the_disk(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    settings = {
        "originals_max_bytes": 1 << 20,
        "cloud_address": "",
        "spool_max_bytes": SPOOL,
        "received_max_bytes": RECEIVED,
        "max_body_bytes": 1 << 20,
    }
    async with edge(tmp_path, tiny_bundle, **settings) as (client, service):
        assert service.ring is not None
        ring, asked = service.ring, 0
        await client.post("/v1/frames", content=picture())
        assert len(ring) == 1
        free = SPOOL - service.spool.pending_bytes + RECEIVED - short

        def statvfs(path: Path) -> SimpleNamespace:
            nonlocal asked
            asked += 1
            return SimpleNamespace(f_bavail=free, f_frsize=1)

        calls = {"statvfs": statvfs, "fchmod": os.fchmod, "fstat": os.fstat}
        monkeypatch.setattr("edge_encoder.originals.ring.os", SimpleNamespace(**calls))
        await until(lambda: asked > 0)
        await until(lambda: len(ring) == 1 - short)
