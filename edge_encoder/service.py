"""The edge box as one object: encoder, spool and uplink wired together. The HTTP API is a shell round it (api.py)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aeic
from aeic import tracing
from edge_encoder import systemd
from edge_encoder.encode_queue import Busy, EncodeQueue
from edge_encoder.encoder import Encoded, Encoder
from edge_encoder.ids import new_id
from edge_encoder.metrics import Metrics
from edge_encoder.rate_control import RateControl
from edge_encoder.records import Entry, IdTaken, Record, SpoolError, State
from edge_encoder.settings import EdgeSettings
from edge_encoder.spool import Spool
from edge_encoder.uplink import Uplink

log = logging.getLogger("aeic.edge")

_FINAL = (State.DELIVERED, State.REJECTED, State.DROPPED)
_HOUSEKEEPING_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client asks for with a picture."""

    rate: str | None = None
    max_bytes: int | None = None
    target_bytes: int | None = None
    priority: int = 0
    source_id: str = ""
    captured_ms: int = 0
    id: uuid.UUID | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """A picture that is safely spooled. `encoded` is None when the id was known and nothing had to be done."""

    entry: Entry
    encoded: Encoded | None


class EdgeService:
    """Construct, `start()`, use, `stop()`; all in one asyncio loop."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.queue = EncodeQueue(settings.encode_workers, settings.encode_queue_frames)
        self.upload_bytes = 0  # held for bodies now being received
        self.stopping = asyncio.Event()
        self.ready = False
        self.encoder: Encoder
        self.spool: Spool
        self.uplink: Uplink
        self.rate_control: RateControl | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: dict[uuid.UUID, list[asyncio.Future[None]]] = {}

    async def start(self) -> None:
        """Loads the bundle, warms up, opens the spool and begins to ship. AeicError or OSError when it cannot."""
        settings = self.settings
        if settings.tracing:
            tracing.set_up("aeic-edge")
        self._loop = asyncio.get_running_loop()
        load = functools.partial(
            Encoder.from_bundle,
            settings.bundle,
            settings.threads,
            provider=settings.provider,
            max_pixels=settings.max_pixels,
        )
        self.encoder = await asyncio.to_thread(load)
        warm = await asyncio.to_thread(self.encoder.warm_up)
        self.spool = Spool(
            settings.data_dir,
            max_bytes=settings.spool_max_bytes,
            full_policy=settings.spool_full_policy,
            history_frames=settings.history_frames,
            on_change=self._on_change,
        )
        bundle = self.encoder.bundle
        self.metrics.info.labels(aeic.__version__, bundle.name, bundle.fingerprint, self.encoder.analysis.provider).set(
            1
        )
        self.metrics.spool_max_bytes.set(settings.spool_max_bytes)
        self.uplink = Uplink(
            self.spool,
            settings,
            self.metrics,
            bundle_digest=bundle.digest,
            software=f"aeic-edge {aeic.__version__}",
        )
        if settings.target_age_seconds:
            self.rate_control = RateControl(bundle.default_rate, settings.target_age_seconds)
        self._tasks = [asyncio.create_task(self.uplink.run()), asyncio.create_task(self._keep_house())]
        self.ready = True
        log.info(
            "ready: bundle %s (%s) on %s, warmed up in %.2f s; %d frames in the spool",
            bundle.name,
            bundle.fingerprint,
            self.encoder.analysis.provider,
            warm,
            self.spool.pending_frames,
        )

    async def take(self, picture: bytes, wish: Wish) -> Taken:
        """Encodes and spools one picture file; returns when a power cut can no longer take it.

        Raises InputError, RateError, Busy, IdTaken, SpoolFull or SpoolError.
        """
        crc = zlib.crc32(picture)
        if wish.id is not None:
            known = await asyncio.to_thread(self.spool.get, wish.id)
            if known is not None and known.picture_crc != crc:
                raise IdTaken(f"id {wish.id} belongs to another picture; use a fresh id for each picture")
            if known is not None and known.state is not State.DROPPED:
                return Taken(known, None)
        encoded = await self.queue.run(
            functools.partial(
                self.encoder.encode,
                picture,
                rate=self._default_rate(wish),
                max_bytes=wish.max_bytes,
                target_bytes=wish.target_bytes,
            )
        )
        begin = time.perf_counter()
        record = Record(
            id=wish.id or new_id(),
            data=encoded.data,
            width=encoded.width,
            height=encoded.height,
            rate=encoded.rate,
            priority=wish.priority,
            created_ms=int(time.time() * 1000),
            captured_ms=wish.captured_ms,
            picture_crc=crc,
            source_id=wish.source_id or self.settings.source_id,
        )
        tracing.keep_current(record.id)
        entry = await asyncio.wrap_future(self.spool.put(record))
        ended = time.monotonic()
        for stage, seconds in (("spool", time.perf_counter() - begin), *reversed(encoded.timings.items())):
            self.metrics.stage_seconds.labels(stage).observe(seconds)
            tracing.span(f"edge.{stage}", seconds, ended=ended)
            ended -= seconds
        self.metrics.frame_bytes.labels(str(encoded.rate)).observe(len(encoded.data))
        self.metrics.picture_bytes.inc(len(picture))
        return Taken(entry, encoded)

    def _default_rate(self, wish: Wish) -> str | int | None:
        """What the client asks for; where it asks for nothing, what the link allows."""
        free = wish.rate is None and wish.max_bytes is None and wish.target_bytes is None
        return self.rate_control.rate if free and self.rate_control else wish.rate

    async def entry(self, ident: uuid.UUID) -> Entry | None:
        """The frame's present state, or None if it is not known (any more)."""
        return await asyncio.to_thread(self.spool.get, ident)

    async def settled(self, ident: uuid.UUID, seconds: float) -> None:
        """Waits until the frame is delivered, rejected or dropped, the time is over, or the service stops."""
        future: asyncio.Future[None] = self._loop.create_future()
        waiters = self._waiting.setdefault(ident, [])
        waiters.append(future)
        stopping = asyncio.create_task(self.stopping.wait())
        try:
            entry = await self.entry(ident)  # after the waiter stands there, so that no change is missed
            if entry is not None and entry.state not in _FINAL:
                either: list[asyncio.Future[Any]] = [future, stopping]
                await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            waiters.remove(future)
            if not waiters:
                self._waiting.pop(ident, None)

    async def stop(self) -> None:
        """Finishes what is in line, gives the uplink drain_timeout_seconds, closes the spool, which keeps the rest."""
        self.ready = False
        self.stopping.set()
        await self.queue.close()
        await self.uplink.drain(self.settings.drain_timeout_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.spool.close)
        log.info("stopped; %d frames stay in the spool", self.spool.pending_frames)

    def status(self) -> dict[str, Any]:
        """What GET /v1/status answers; ages in seconds, sizes in bytes."""
        bundle, uplink = self.encoder.bundle, self.uplink.status
        return {
            "service": "edge",
            "version": aeic.__version__,
            "source_id": self.settings.source_id,
            "bundle": {"name": bundle.name, "fingerprint": bundle.fingerprint, "digest": bundle.digest.hex()},
            "rates": [{"number": r.number, "name": r.name, "bpp": r.bpp} for r in bundle.rates],
            "default_rate": self.rate_control.rate if self.rate_control else bundle.default_rate,
            "provider": self.encoder.analysis.provider,
            "encoding": {"pending": self.queue.pending, "workers": self.settings.encode_workers},
            "spool": {
                "frames": self.spool.pending_frames,
                "bytes": self.spool.pending_bytes,
                "max_bytes": self.spool.max_bytes,
                "full_policy": self.spool.full_policy,
                "oldest_seconds": round(self.spool.oldest_age_seconds(), 3),
                "unreadable_frames": self.spool.unreadable,
            },
            "uplink": {
                "cloud": self.settings.cloud_address,
                "state": uplink.state,
                "detail": uplink.detail,
                "since_unix": round(uplink.since, 3),
                "last_ack_unix": None if uplink.last_ack is None else round(uplink.last_ack, 3),
                "failures_in_a_row": uplink.failures_in_a_row,
            },
            "stopping": self.stopping.is_set(),
        }

    def render_metrics(self) -> bytes:
        """The text of GET /metrics."""
        metrics = self.metrics
        metrics.queue_frames.set(self.queue.pending)
        metrics.spool_frames.set(self.spool.pending_frames)
        metrics.spool_bytes.set(self.spool.pending_bytes)
        metrics.unreadable.set(self.spool.unreadable)
        default = self.encoder.bundle.default_rate
        metrics.default_rate.set(self.rate_control.rate if self.rate_control else default)
        metrics.oldest_seconds.set(self.spool.oldest_age_seconds())
        return metrics.render()

    @contextlib.contextmanager
    def upload(self, size: int) -> Iterator[None]:
        """Reserves memory for a body of `size` bytes; Busy when all bodies together would be too much."""
        if self.upload_bytes + size > self.settings.uploads_max_bytes:
            raise Busy("too many bytes are being received at once; come again in 1 s", 1)
        self.upload_bytes += size
        try:
            yield
        finally:
            self.upload_bytes -= size

    # -- from the spool ----------------------------------------------------------------------------------------

    def _on_change(self, ident: uuid.UUID, state: State, reason: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(self._changed, ident, state, reason)

    def _changed(self, ident: uuid.UUID, state: State, reason: str) -> None:
        if state is State.SPOOLED:
            self.uplink.wake()
            return
        if state is State.DROPPED:
            word = {"spool": "full", "too": "age"}.get(reason.partition(" ")[0], "damaged")
            self.metrics.dropped.labels(word).inc()
            log.warning("frame %s dropped: %s", ident, reason)
        for future in self._waiting.get(ident, ()):
            if not future.done():
                future.set_result(None)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            if self.spool.alive:
                systemd.notify("WATCHDOG=1")
            if self.settings.spool_max_age_seconds:
                limit = int((time.time() - self.settings.spool_max_age_seconds) * 1000)
                with contextlib.suppress(SpoolError):
                    await asyncio.wrap_future(self.spool.expire(limit))
            if self.rate_control is not None:
                with contextlib.suppress(SpoolError):
                    oldest = await asyncio.to_thread(self.spool.oldest_age_seconds)
                    before = self.rate_control.rate
                    after = self.rate_control.observe(
                        time.monotonic(), oldest, self.spool.pending_bytes, self.uplink.delivered_bytes
                    )
                    if after != before:
                        log.info("default rate point %d -> %d: the oldest frame is %.0f s old", before, after, oldest)
