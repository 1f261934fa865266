"""A worker that runs in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloud_decoder.events import EventBus
from cloud_decoder.images.disk_cache import DiskCache
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.store import Store
from cloud_decoder.worker.worker import Worker, WorkerSettings
from tests.support.cloud.cloud import FakeGenerator
from tests.support.cloud.running_worker import Running


@pytest.fixture
def running(decoder: Decoder, generator: FakeGenerator, store: Store, tmp_path: Path) -> Running:
    @asynccontextmanager
    async def run(**options: Any) -> AsyncIterator[Worker]:
        cache = DiskCache(tmp_path / "cache", 10**8)
        worker = Worker(ModelPool.of(decoder), store, cache, Metrics(), EventBus(), WorkerSettings(**options))
        await worker.start()
        try:
            yield worker
        finally:
            generator.gate.set()
            await worker.stop()

    return run
