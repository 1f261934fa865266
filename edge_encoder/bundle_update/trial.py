"""Chooses the bundle of a start, and confirms or refuses one that is on trial (staging.py).

`aeic bundle stage FOLDER` puts a bundle on trial, and the next start of the service takes it up; nothing restarts the
service for it. `choose` uses it only when no frame can be lost by it. The oldest frame of the spool decides:

    a frame of another model,    the current bundle stays in use, and the next start tries again
    or one that cannot be read
    a frame of the trial's own   the trial goes on: an earlier start made that frame
    none, the spool is empty     the cloud is asked, if there is one; without its answer the current bundle stays, as in
                                 the first case, and one that the cloud does not decode is refused

AEIC_EDGE_BUNDLE_TRIAL_FRAMES acknowledged frames (20) of one start confirm the bundle. The cloud acknowledges a frame
when it has checked its header and stored it; it decodes the frame later. The bundle is refused when it does not load,
by one frame that the cloud rejects, which also restarts the service (service.py), and after staging.TRIAL_STARTS starts
without confirmation. The service then uses the bundle again that was current before the trial.

EdgeService calls `choose` before it loads a bundle, and `delivered` and `failed` for the frames that the cloud answers.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.errors import AeicError
from edge_encoder.bundle_update.staging import Staging
from edge_encoder.settings import EdgeSettings
from edge_encoder.spool.spool import Spool

log = logging.getLogger("aeic.edge.staging")


class Trial:
    """`ask(digest)` asks the cloud: "" when it accepts that bundle, else the state the uplink would be in."""

    def __init__(self, settings: EdgeSettings, spool: Spool, ask: Callable[[bytes], Awaitable[str]]) -> None:
        self.staging = Staging(settings.bundles_dir) if settings.bundles_dir is not None else None
        self.on = False
        self._settings = settings
        self._spool = spool
        self._ask = ask
        self._accepted = 0

    @property
    def current(self) -> Path | None:
        """The folder of the bundle that is not on trial; None for the one that ships."""
        staged = self.staging.path(self.staging.state.current) if self.staging is not None else None
        return staged or self._settings.bundle

    async def choose(self) -> Path | None:
        """The folder of the bundle for this start."""
        if self.staging is None or not self.staging.state.trial:
            return self.current
        path = self.staging.path(self.staging.state.trial)
        try:
            bundle = Bundle.load(path)
        except AeicError as error:
            self.staging.refuse(str(error))
            return self.current
        try:
            waiting = self._spool.oldest()
            made_with = None if waiting is None else Frame.parse(waiting.data).fingerprint
        except AeicError as error:  # a fault of the disk or of a frame, and not of the bundle
            log.warning("the trial of bundle %s is postponed: %s", bundle.name, error)
            return self.current
        if made_with is None:
            state = await self._ask(bundle.digest) if self._settings.cloud_address else ""
            if state == "model-mismatch":
                self.staging.refuse("the cloud does not decode it")
                return self.current
            if state:
                log.warning("the trial of bundle %s is postponed: the cloud is %s", bundle.name, state)
                return self.current
        elif made_with != bundle.fingerprint:
            log.warning("the trial of bundle %s is postponed: frames of another model are in the spool", bundle.name)
            return self.current
        self.on = bool(self.staging.begin_trial())
        return path if self.on else self.current

    def delivered(self) -> None:
        """The cloud has accepted a frame."""
        if self.on and self.staging is not None:
            self._accepted += 1
            if self._accepted >= self._settings.bundle_trial_frames:
                self.on = False
                self.staging.confirm()

    def failed(self, reason: str) -> None:
        """The bundle on trial does not load, or the cloud has rejected one of its frames."""
        if self.on and self.staging is not None:
            self.on = False
            self.staging.refuse(reason)
