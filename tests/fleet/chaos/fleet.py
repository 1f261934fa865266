"""A whole fleet on this machine: a real PostgreSQL, front ends, workers, and how they are killed or restarted."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from cloud_decoder.store.store import Store
from tests.fleet.chaos.members import Member
from tests.support.cloud.postgres import Postgres
from tests.support.models.tiny_bundle import write_tiny_bundle

LEASE = 3.0
"""Seconds, of every worker here."""


def make_frames(bundle: Bundle, count: int, kinds: int = 50) -> list[tuple[UUID, bytes]]:
    """Frames of three sizes under new ids; every one of ``kinds`` contents."""
    codec, chance = LatentCodec(bundle, 1), np.random.default_rng(0)
    contents = []
    for number in range(kinds):
        width, height = ((128, 96), (96, 128), (64, 64))[number % 3]
        size = Frame(width, height, 0, bundle.fingerprint, b"").latent_size
        contents.append(
            codec.encode(chance.normal(0, 20, (bundle.channels, *size)).astype(np.float32), 0, width, height)
        )
    return [(uuid4(), contents[number % kinds]) for number in range(count)]


class Fleet:
    """PostgreSQL, front ends behind one address, workers; without Ray each is a process of ours."""

    def __init__(self, folder: Path, workers: int, fronts: int, http: int, grpc: int) -> None:
        self.folder = folder
        self.postgres = Postgres(durable=True)
        self.bundle = Bundle.load(write_tiny_bundle(folder / "bundle"))
        self.http, self.grpc = f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        self.settings: dict[str, Any] = {
            "bundle": folder / "bundle",
            "device": "onnx",
            "database_url": self.postgres.url,
            "cache_url": f"file://{folder}/pictures",
            "lease_seconds": LEASE,
            "max_attempts": 20,  # kills are ours, not the frames'
            "drain_seconds": 10,
        }
        front: dict[str, Any] = {"role": "ingest", "reuse_port": True, "port": http, "grpc_port": grpc}
        self.fronts = [Member(f"front-{n}", folder, **self.settings | front) for n in range(fronts)]
        worker: dict[str, Any] = {"role": "worker", "port": 0, "grpc_port": 0, "poll_seconds": 0.1}
        self.workers = [Member(f"worker-{n}", folder, **self.settings | worker) for n in range(workers)]

    async def start(self) -> None:
        """Everything up."""
        await asyncio.to_thread(self.postgres.start)
        Store(self.postgres.url).close()
        await asyncio.gather(*(member.start() for member in (*self.fronts, *self.workers)))

    async def stop(self) -> list[int]:
        """Everything down gently; the exit statuses."""
        codes = await asyncio.gather(*(member.stop() for member in (*self.fronts, *self.workers)))
        await asyncio.to_thread(self.postgres.stop)
        return list(codes)

    def abandon(self) -> None:
        """Nothing of it is left, whatever happened."""
        for member in (*self.fronts, *self.workers):
            member.kill()
        self.postgres.kill()
        self.postgres.stop()

    async def trouble(self, rng: random.Random, events: Counter[str], over: asyncio.Event) -> None:
        """One kill after the other, each followed by what a supervisor does: a start."""
        while not over.is_set():
            await asyncio.sleep(rng.uniform(0.2, 1.5))
            kind = rng.choice(["worker", "worker", "front", "postgres"])
            events[kind] += 1
            if kind == "postgres":
                await asyncio.to_thread(self.postgres.kill)
                await asyncio.sleep(rng.uniform(0, 1))
                await asyncio.to_thread(self.postgres.start)
            else:
                member = rng.choice(self.workers if kind == "worker" else self.fronts)
                member.kill()
                await member.start()

    async def roll(self, events: Counter[str]) -> list[int]:
        """Every part stopped gently and started again, the database too; the exit statuses."""
        codes = []
        for member in (*self.workers, *self.fronts):
            events[member.name] += 1
            codes.append(await member.stop())
            await member.start()
            await asyncio.sleep(0.5)
        events["postgres"] += 1
        await asyncio.to_thread(self.postgres.restart)
        await asyncio.sleep(1.0)
        return codes
