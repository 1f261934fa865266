"""Durable storage of bitstreams and their state. One commit makes a frame durable and queues it.

::

    received --claim--> decoding --finish--> done  --prune--> pruned
        ^                  |  |
        +---- lease out ---+  +--fail--> failed

* An id is stored once. The same id with the same bytes again is a duplicate; with other bytes it is a conflict.
* A claim is a lease: a job that its owner neither finished nor renewed can be claimed again once the lease has run out.
  Each claim has a unique token in ``jobs.lease_owner``, so a worker that wakes after another one has claimed its
  frame changes nothing. A frame that is ``done`` never becomes ``failed``.
* A worker counts an attempt when the decoding of a frame begins (:meth:`JobQueue.begin`), and takes it back where it
  returns the frame alive. A frame that ends its worker every time is therefore ``failed`` after ``max_attempts``;
  frames that were only claimed have lost nothing.
* Only ``wanted`` frames are claimed on arrival; the others wait until a caller asks for them
  (:meth:`JobQueue.claim_one`, :meth:`JobQueue.demand`).
* Retention marks the oldest finished frames, and clients mark frames of any state. After a grace period their
  bitstreams are removed (:class:`~cloud_decoder.store.retention.Retention`). Their rows are kept, so that an id is
  never reused.

Times are arguments, in seconds since 1970, so that tests need no clock. :meth:`Store.clock` is the one that all
processes of a fleet agree on, for leases and the queue. Frames age by :attr:`Store.trusted_clock`. Calls block; the
service runs them on threads.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from cloud_decoder.store import log_recovery
from cloud_decoder.store.clock import DAY, TrustedClock
from cloud_decoder.store.database import Database, path_of
from cloud_decoder.store.event_log import EventLog
from cloud_decoder.store.frames import Frames
from cloud_decoder.store.queue import JobQueue
from cloud_decoder.store.records import (
    Added,
    Backlog,
    DecodeResult,
    Deleted,
    DeletedBy,
    FrameState,
    Lease,
    LeasedFrame,
    NewFrame,
    NewRequest,
    OpenRequest,
    Page,
    RefusalReason,
    RequestKind,
    RequestState,
    StoredFrame,
    StoredRequest,
)
from cloud_decoder.store.requests import Requests
from cloud_decoder.store.retention import Retention

__all__ = [
    "Added",
    "Backlog",
    "DecodeResult",
    "Deleted",
    "DeletedBy",
    "FrameState",
    "Lease",
    "LeasedFrame",
    "NewFrame",
    "NewRequest",
    "OpenRequest",
    "Page",
    "RefusalReason",
    "RequestKind",
    "RequestState",
    "Store",
    "StoredFrame",
    "StoredRequest",
]


class Store:
    """``url`` is SQLAlchemy's, ``sqlite:///path`` or ``postgresql+psycopg://...``. Missing tables are created.

    ``aging_seconds`` of waiting are worth one level of priority. A clock that is more than
    ``max_jump_seconds`` ahead of the latest time that the store has recorded is not trusted.
    """

    def __init__(self, url: str | sa.URL, aging_seconds: float = 2.0, max_jump_seconds: float = 7 * DAY) -> None:
        path = path_of(sa.make_url(url))
        gone = "" if path is None else log_recovery.set_aside(Path(path))
        self.database = Database(url)
        self.url = self.database.url
        self.frames = Frames(self.database, aging_seconds)
        self.requests = Requests(self.database)
        self.queue = JobQueue(self.database, aging_seconds)
        self.retention = Retention(self.database, aging_seconds)
        self.events = EventLog(self.database)
        self.trusted_clock = TrustedClock(self.database, max_jump_seconds)
        try:
            back = "" if path is None else log_recovery.put_back(Path(path), self.frames, self.retention, self.clock)
            self.log_problem = gone or back
            """What happened to the last commits, if the log was damaged when the store was opened; else empty."""
        except BaseException:
            self.close()
            raise

    def clock(self) -> float:
        """Seconds since 1970 by the database's clock."""
        return self.database.clock()

    def close(self) -> None:
        """Close all connections."""
        self.database.close()
