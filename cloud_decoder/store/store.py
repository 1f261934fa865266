"""What the cloud must not lose: bitstreams and their state. One commit makes a frame durable and queues it.

::

    received --claim--> decoding --finish--> done  --prune--> pruned
        ^                  |  |
        +---- lease out ---+  +--fail--> failed

* An id is stored once. The same id with the same bytes again is a duplicate; with other bytes it is a conflict.
* A claim is a lease: what its owner neither finished nor renewed is claimable again when the lease has run out. Every
  claim counts as an attempt, so a frame that kills its decoder every time ends in ``failed`` (``max_attempts``).
* Only ``wanted`` frames are claimed unasked; the others wait until somebody asks (:meth:`Store.claim_one`,
  :meth:`Store.demand`).
* Pruning empties the bitstream of the oldest decoded frames and keeps their row, so an id is remembered for ever.

Times are passed in, seconds since 1970, so tests need no clock; :meth:`Store.clock` is the one that all processes of
a fleet agree on. Calls block; the service runs them on threads.
"""

from __future__ import annotations

import sqlalchemy as sa

from cloud_decoder.store.database import Database
from cloud_decoder.store.inserts import Arrivals
from cloud_decoder.store.queries import Shelves
from cloud_decoder.store.queue import Leases
from cloud_decoder.store.records import Added, Backlog, DecodeResult, LeasedFrame, NewFrame, State, StoredFrame

__all__ = ["Added", "Backlog", "DecodeResult", "LeasedFrame", "NewFrame", "State", "Store", "StoredFrame"]


class Store(Arrivals, Leases, Shelves):
    """``url`` is SQLAlchemy's, ``sqlite:///path`` or ``postgresql+psycopg://...``; tables are made where missing."""

    def __init__(self, url: str | sa.URL, aging_seconds: float = 2.0) -> None:
        super().__init__(Database(url), aging_seconds)
        self.url = self.database.url
