"""The edge service: encoder, spool and uplink wired together. The HTTP API (http_api/routes.py) wraps it.

`start` and `stop` have the order of things. `_changed` is called for every change of a frame, after its commit, and
notifies the uplink, the deferred encoder, waiting clients and a bundle on trial. `_housekeeping` runs once a second.
`problem` is what /readyz reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import aeic
from aeic.errors import AeicError
from aeic.runtime.processor import usable_cores
from aeic_service import tracing
from aeic_service.budgets import Budget, Used
from aeic_service.certificates import Certificates
from aeic_service.host_limits import HostLimits
from aeic_service.supervisor import Supervisor
from edge_encoder import systemd
from edge_encoder.answers.answerer import Answerer, AnswerLimits, PictureSources, TakePicture
from edge_encoder.bundle_update.trial import Trial
from edge_encoder.encoding.encode_queue import EncodeQueue
from edge_encoder.encoding.encoder import Encoder
from edge_encoder.encoding.link_adaptation import LinkAdaptation
from edge_encoder.encoding.picture_process import read_bytes
from edge_encoder.encoding.picture_reader import PictureReader
from edge_encoder.errors import SpoolError
from edge_encoder.metrics import Metrics
from edge_encoder.originals.cipher import Cipher
from edge_encoder.originals.ring import OriginalRing
from edge_encoder.settings import EdgeSettings
from edge_encoder.source_status import SourceStatus
from edge_encoder.spool.record import Change, Entry, State
from edge_encoder.spool.spool import Spool
from edge_encoder.submission.deferred_encoder import DeferredEncoder
from edge_encoder.submission.delivery_waiters import DeliveryWaiters
from edge_encoder.submission.request import Accepted, EncodeRequest
from edge_encoder.submission.submitter import Submitter
from edge_encoder.uplink.stream import Callbacks, Report
from edge_encoder.uplink.uplink import Identity, Uplink, ask

log = logging.getLogger("aeic.edge")

_HOUSEKEEPING_SECONDS = 1.0
_HUNG_SECONDS = 300.0  # no picture takes this long: the watchdog is no longer notified
_MOST_SECONDS = 2**31  # that a report can hold
_PROBE_SECONDS = 3.0  # for a test write to the spool
_SOFTWARE = f"aeic-edge {aeic.__version__}"
_ENCODING_GRACE_SECONDS = 10.0
_BYTES_A_PIXEL = 12  # at the peak of an encode: the decoded picture, its RGB, rows of features, the latents
_OTHER_BYTES = 500 << 20  # the process, its graphs and the tensors of their tiles
_LEAST_PIXELS = 4 << 20  # taken on every box
_BODIES_SHARE = 8  # bodies that arrive take at most this part of the memory, but one fits in any case
_MOST_WORKERS = 4  # each holds the buffers of one picture


class EdgeService:
    """Construct, `start()`, use, `stop()`; all in one asyncio loop."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        memory = HostLimits.read().memory_bytes
        pixels = settings.max_pixels_at_once or memory // 2 // _BYTES_A_PIXEL
        workers = settings.encode_workers or min(_MOST_WORKERS, usable_cores())
        self.queue = EncodeQueue(workers, settings.encode_queue_frames, pixels)
        room = int(0.95 * memory - _OTHER_BYTES)
        fitting = max(_LEAST_PIXELS, room // _BYTES_A_PIXEL)
        self.reader = PictureReader(
            settings.picture_process,
            workers + 1,  # one more for an original that is kept, beside those that are encoded
            max(room, read_bytes(0, _LEAST_PIXELS)),
            lambda reason: self.metrics.pictures_lost.labels(reason).inc(),
        )
        self.max_pixels = min(settings.max_pixels, fitting)
        """Of one picture."""
        if self.max_pixels < settings.max_pixels:
            log.info(
                "pictures of at most %d pixels are accepted: larger ones do not fit into the memory", self.max_pixels
            )
        self.uploads = Budget(min(settings.uploads_max_bytes, max(settings.max_body_bytes, memory // _BODIES_SHARE)))
        self.budgets: dict[str, Used] = {"body_bytes": self.uploads, "pixels": self.queue.pixels}
        own, authorities = {"tls_cert": settings.tls_cert}, {"tls_ca": settings.tls_ca}
        self.certificates = Certificates(chains=own, authorities=authorities)
        self.abandoned = False  # whether stop() left a picture that is still being encoded
        self.stopping = asyncio.Event()
        self.restart = asyncio.Event()  # set when the service should end and be restarted
        self.ready = False
        self.supervisor = Supervisor(lambda name: self.metrics.task_restarts.labels(name).inc())
        self.trial: Trial
        self.encoder: Encoder
        self.spool: Spool
        self.submitter: Submitter
        self.deferred_encoder: DeferredEncoder
        self.uplink: Uplink
        self.ring: OriginalRing | None = None
        self.answerer: Answerer | None = None
        self.link_adaptation: LinkAdaptation | None = None
        self.sources: list[SourceStatus] = []
        self.cameras: dict[str, TakePicture] = {}
        """Live cameras, by their source."""
        self._tasks: list[asyncio.Task[None]] = []
        self.waiting = DeliveryWaiters(self.entry, self.stopping)

    async def start(self) -> None:
        """Opens the spool, loads the bundle, warms up and starts delivery. AeicError or OSError when it cannot."""
        settings = self.settings
        if settings.tracing:
            tracing.set_up("aeic-edge")
        self._loop = asyncio.get_running_loop()
        self.spool = Spool(
            settings.data_dir,
            max_bytes=settings.spool_max_bytes,
            full_policy=settings.spool_full_policy,
            history_frames=settings.history_frames,
            on_change=self._on_change,
        )
        self.trial = Trial(settings, self.spool, lambda digest: ask(settings, Identity(digest, _SOFTWARE)))
        try:
            path = await self.trial.choose()
            try:
                warm = await asyncio.to_thread(self._load, path)
            except AeicError as error:
                if not self.trial.on:
                    raise
                self.trial.failed(str(error))
                warm = await asyncio.to_thread(self._load, self.trial.current)
        except BaseException:
            self.spool.close()
            raise
        bundle = self.encoder.bundle
        labels = aeic.__version__, bundle.name, bundle.fingerprint, bundle.digest.hex(), self.encoder.analysis.provider
        self.metrics.info.labels(*labels).set(1)
        self.metrics.spool_max_bytes.set(settings.spool_max_bytes)
        self.answerer = answerer = await asyncio.to_thread(self._keep_originals)
        self.uplink = Uplink(
            self.spool,
            settings,
            self.metrics,
            Identity(bundle.digest, _SOFTWARE),
            Callbacks(
                prompt=self.waiting.__contains__,
                answer=None if answerer is None else answerer.answer,
                report=self.report,
            ),
        )
        if settings.target_age_seconds:
            self.link_adaptation = LinkAdaptation(bundle.default_rate, settings.target_age_seconds)
        self.submitter = Submitter(self.encoder, self.queue, self.spool, self.waiting, self.metrics, settings)
        self.submitter.link_adaptation = self.link_adaptation
        self.submitter.ring = self.ring
        self.deferred_encoder = DeferredEncoder(
            self.spool,
            self.queue,
            self.submitter,
            max_received=settings.received_max_frames,
            max_bytes=settings.received_max_bytes,
        )
        start = self.supervisor.start
        start("originals", self.deferred_encoder.run, may_end=True)
        await asyncio.sleep(0)
        self._tasks = [
            start("uplink", self.uplink.run, may_end=not settings.cloud_address),
            start("housekeeping", self._housekeeping),
        ]
        for task in self.supervisor.tasks:
            self.metrics.task_restarts.labels(task.name)  # 0 so far
        self.ready = True
        log.info(
            "ready: bundle %s (%s) on %s, warmed up in %.2f s; %d frames and %d received pictures in the spool",
            bundle.name,
            bundle.fingerprint,
            self.encoder.analysis.provider,
            warm,
            self.spool.pending_frames,
            self.spool.received_pictures,
        )

    def _load(self, path: Path | None) -> float:
        """Loads and warms up the encoder of the bundle at `path`; returns the seconds the warm-up took."""
        settings = self.settings
        self.encoder = Encoder.from_bundle(
            path,
            settings.threads,
            provider=settings.provider,
            entropy=settings.entropy,
            entropy_check_frames=settings.entropy_check_frames,
            cuda_graphs=settings.cuda_graphs,
            max_pixels=self.max_pixels,
        )
        seconds = self.encoder.warm_up()  # in this process, since no child is started before it is needed
        self.encoder.reader = self.reader
        self.encoder.colour_fix = settings.colour_fix
        return seconds

    def _keep_originals(self) -> Answerer | None:
        """Opens the ring of originals, if the settings ask for one, for requests of the cloud."""
        settings = self.settings
        folder = settings.data_dir / "originals"
        if not settings.originals_max_bytes:
            if folder.is_dir():
                OriginalRing(folder, max_bytes=0)  # deletes what was kept under earlier settings
            return None
        sources = (*settings.all_cameras(), *settings.all_folders(), *settings.mqtt)
        self.ring = OriginalRing(
            folder,
            max_bytes=settings.originals_max_bytes,
            max_age_seconds=settings.originals_max_age_seconds,
            source_bytes={
                source.id_at(settings.source_id): source.originals_max_bytes
                for source in sources
                if source.originals_max_bytes is not None
            },
            spool_needs=self._spool_needs,
            cipher=Cipher.of(settings.originals_key),
        )
        if not settings.request_max_bytes:
            return None
        return Answerer(
            PictureSources(self.ring, self.cameras, settings.source_id),
            self.encoder,
            self.queue,
            self.spool,
            self.metrics,
            AnswerLimits(
                settings.request_max_bytes,
                settings.request_original_max_bytes,
                settings.request_bytes_per_hour,
                pictures_now=settings.request_now,
                charges=settings.data_dir / "charges.sqlite3",
            ),
        )

    def _spool_needs(self) -> int:
        """The bytes that the spool may still take of the disk: for frames, and for pictures of `?wait=received`, of
        which one may be larger than all together."""
        settings, spool = self.settings, self.spool
        received = max(settings.received_max_bytes, settings.max_body_bytes)
        return max(0, settings.spool_max_bytes - spool.pending_bytes) + max(0, received - spool.received_bytes)

    async def take(self, picture: bytes | NDArray[np.uint8], encode_request: EncodeRequest) -> Accepted:
        """Encodes and spools one picture: Submitter.take."""
        return await self.submitter.take(picture, encode_request)

    async def entry(self, ident: uuid.UUID) -> Entry | None:
        """The frame's present state, or None if it is not known (any more)."""
        return await asyncio.to_thread(self.spool.get, ident)

    async def problem(self) -> str:
        """Why the service does not do its work now; empty when it does. Tests a write to the spool."""
        if not self.ready:
            return "starting or stopping"
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await asyncio.wrap_future(self.spool.probe())
        except TimeoutError:
            return f"the spool's disk did not answer within {_PROBE_SECONDS:g} s"
        except SpoolError as error:
            return str(error)
        if self.queue.longest_seconds() > _HUNG_SECONDS:
            return f"a picture has been in the encoder for over {_HUNG_SECONDS:g} s"
        return self.deferred_encoder.problem or self.supervisor.problem

    async def report(self) -> Report:
        """The health of the box, for the cloud. Unlike :meth:`problem` it writes nothing to the disk. It holds no texts
        of errors, which may contain the address of a camera."""
        waiting = self.spool.pending_frames + self.spool.received_pictures
        oldest = await asyncio.to_thread(self.spool.oldest_age_seconds) if waiting else 0
        problems = [self.spool.problem, self.deferred_encoder.problem]
        problems += [
            f"{task.name} restarts after an error" for task in self.supervisor.tasks if task.state == "restarting"
        ]
        problems += [f"{source.name} cannot be read" for source in self.sources if source.state == "down"]
        problem = "; ".join(filter(None, problems))
        return Report(waiting, min(int(oldest), _MOST_SECONDS), problem)

    async def stop(self) -> None:
        """Finishes pending pictures within _ENCODING_GRACE_SECONDS, gives the uplink drain_timeout_seconds, then closes
        the spool."""
        self.ready = False
        self.stopping.set()
        self.supervisor.stop()
        try:
            async with asyncio.timeout(_ENCODING_GRACE_SECONDS):
                await self.deferred_encoder.stop()
                await self.queue.close()
        except TimeoutError:
            self.abandoned = True
            await self.deferred_encoder.abandon()
            log.warning("%d pictures were not encoded in time; those without an answer are lost", self.queue.pending)
        await asyncio.to_thread(self.reader.close)
        await self.uplink.drain(self.settings.drain_timeout_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.answerer is not None:
            self.answerer.close()
        await asyncio.to_thread(self.spool.close)
        log.info(
            "stopped; %d frames and %d received pictures stay in the spool",
            self.spool.pending_frames,
            self.spool.received_pictures,
        )

    # -- from the spool ----------------------------------------------------------------------------------------

    def _on_change(self, change: Change) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and all waits with it
            self._loop.call_soon_threadsafe(self._changed, change)

    def _changed(self, change: Change) -> None:
        ident, state, reason = change.id, change.state, change.reason
        if state is State.RECEIVED:
            self.deferred_encoder.wake()
            return
        if state is State.SPOOLED:
            self.uplink.wake()
            return
        if change.drop is not None:
            self.metrics.dropped.labels(change.drop.value).inc()
            log.warning("frame %s dropped: %s", ident, reason)
        elif state is State.FAILED:
            self.metrics.failed.inc()
            log.warning("received picture %s failed: %s", ident, reason)
        elif state is State.DELIVERED:
            self.trial.delivered()
        elif state is State.REJECTED and self.trial.on:
            self.trial.failed(f"the cloud rejected one of its frames: {reason}")
            self.restart.set()
        self.waiting.notify(ident)

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            # A probe writes a missing file again, and opens a spool whose disk works again: no request may be coming.
            if self.spool.problem != "" or await asyncio.to_thread(self.spool.misplaced):
                with contextlib.suppress(SpoolError):
                    await asyncio.wrap_future(self.spool.probe())
            await asyncio.to_thread(self.reader.expire)
            if self.ring is not None:
                await asyncio.to_thread(self.ring.expire)
            if self.spool.alive and self.queue.longest_seconds() < _HUNG_SECONDS:
                systemd.notify("WATCHDOG=1")
            if self.settings.spool_max_age_seconds:
                with contextlib.suppress(SpoolError):
                    await asyncio.wrap_future(self.spool.expire(self.settings.spool_max_age_seconds))
            if self.link_adaptation is not None:
                with contextlib.suppress(SpoolError):
                    # Received pictures wait for the encoder, not for the link.
                    age = functools.partial(self.spool.oldest_age_seconds, received=False)
                    oldest = await asyncio.to_thread(age)
                    before = self.link_adaptation.rate
                    after = self.link_adaptation.observe(
                        time.monotonic(), oldest, self.spool.pending_bytes, self.uplink.delivered_bytes
                    )
                    if after != before:
                        log.info("default rate point %d -> %d: the oldest frame is %.0f s old", before, after, oldest)
