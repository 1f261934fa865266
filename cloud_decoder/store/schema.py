"""The tables of the store, for SQLite and PostgreSQL alike. :mod:`cloud_decoder.store.store` explains them.

A row of ``frames`` is written twice, when the frame is received and when it is decoded, and kept. ``jobs`` is the
queue: narrow, short-lived rows that are leased and deleted, so that the queue never rewrites a bitstream. A change here
needs a revision in ``cloud_decoder/store/migrations``; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    and_,
    event,
    literal_column,
)

metadata = MetaData()

NEVER_MS = 2**62
"""The deadline of a job without one. It is later than any other. The databases would sort NULL differently."""

frames = Table(
    "frames",
    metadata,
    # Order of arrival; the cursor of lists. SQLite counts up by itself only in a column that is exactly INTEGER.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("tenant", String(64), nullable=False),
    Column("id", Uuid, nullable=False),
    Column("source", String(128), nullable=False),
    Column("captured_ms", BigInteger, nullable=False),  # by the edge's clock; 0 where unknown
    Column("received_ms", BigInteger, nullable=False),
    Column("available_ms", BigInteger),  # when its picture was first available
    Column("priority", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("rate", Integer, nullable=False),
    Column("fingerprint", String(6), nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("digest", String(64), nullable=False),  # sha256 of the bitstream, hex
    Column("bitstream", LargeBinary),  # NULL once retention has removed it
    Column("state", String(10), nullable=False),
    Column("wanted", Boolean, nullable=False),  # decode before a caller asks for it
    Column("reason", Text),
    Column("latents_digest", String(64)),
    Column("timings", JSON),  # seconds: queue, entropy, synthesis, image
    Column("original_width", Integer),  # before the edge scaled the picture down
    Column("original_height", Integer),
    Column("captured_from", String(8)),  # sender, exif, file, clock
    Column("deleted_ms", BigInteger),  # when it was marked; NULL again once the bitstream is removed
    Column("box", String(128)),  # the box that delivered it, if that is not the source itself
    Column("parent", Uuid),  # an answer to a request: the frame that was asked about
    Column("kind", String(8)),  # of that request
    Column("region", JSON),  # of that request: x, y, width, height in pixels of the parent's original
    Column("deleted_by", String(10)),  # of a pruned frame: retention, client
    Column("media_type", String(32)),  # of a picture file that answers a request; NULL for a frame
    UniqueConstraint("tenant", "id", name="frames_tenant_id_key"),
    # The last columns are not searched. With them a list can be filtered by time and rate in the index alone.
    Index("frames_by_arrival", "tenant", "seq", "received_ms", "rate"),
    Index("frames_by_source", "tenant", "source", "seq", "received_ms", "rate"),
    Index("frames_by_state", "tenant", "state", "seq", "received_ms", "rate", "bytes"),
    sqlite_autoincrement=True,
)
_deleted = frames.c.deleted_ms.is_not(None)
Index(
    "frames_deleted",
    frames.c.deleted_ms,
    frames.c.seq,
    frames.c.bytes,
    frames.c.tenant,
    sqlite_where=_deleted,
    postgresql_where=_deleted,
)

KEPT = frames.c.state != literal_column("'pruned'")
"""Frames that are neither pruned nor deleted. A literal, so that both databases see that the index below applies."""
Index(
    "frames_kept",
    frames.c.tenant,
    frames.c.source,
    frames.c.seq,
    frames.c.received_ms,
    frames.c.bytes,
    sqlite_where=KEPT,
    postgresql_where=KEPT,
)

_answers = frames.c.parent.is_not(None)
Index(
    "frames_by_parent",
    frames.c.tenant,
    frames.c.parent,
    frames.c.seq,
    sqlite_where=_answers,
    postgresql_where=_answers,
)

# No foreign key: one transaction writes both rows, and the check would lock the frame at every claim.
jobs = Table(
    "jobs",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("fingerprint", String(6), nullable=False),
    Column("bucket", String(16), nullable=False),  # jobs of one bucket can share a batch
    # The place in the queue: arrival in units of aging_seconds, less priority. It is constant, so that an index can
    # hold it, and a job that waits still overtakes a more important one that arrives later.
    Column("turn", BigInteger, nullable=False),
    Column("deadline_ms", BigInteger, nullable=False),
    Column("queued_ms", BigInteger, nullable=False),
    Column("wanted", Boolean, nullable=False),  # claimed before a caller asks for it
    Column("attempts", Integer, nullable=False),
    Column("lease_owner", String(128)),
    Column("lease_until", Float(53)),  # seconds since 1970, by the store's clock
    Column("tenant", String(64), nullable=False, server_default=""),  # of the frame
)


def _ready_index(name: str, *columns: str) -> None:
    ready = and_(jobs.c.lease_until.is_(None), jobs.c.wanted)
    Index(name, *(jobs.c[column] for column in columns), sqlite_where=ready, postgresql_where=ready)


_ready_index("jobs_ready", "fingerprint", "turn", "deadline_ms", "seq")
_ready_index("jobs_ready_alike", "fingerprint", "bucket", "turn", "deadline_ms", "seq")
_ready_index("jobs_ready_by_tenant", "fingerprint", "tenant", "turn", "deadline_ms", "seq")
_leased = jobs.c.lease_until.is_not(None)
Index("jobs_leased", jobs.c.lease_until, sqlite_where=_leased, postgresql_where=_leased)

# Rows of a queue are short-lived: with the defaults, dead rows would outnumber living ones ten to one.
JOBS_STORAGE = "ALTER TABLE jobs SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000)"
_storage = DDL(JOBS_STORAGE)  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped
event.listen(jobs, "after_create", _storage.execute_if(dialect="postgresql"))

sources = Table(
    "sources",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("source", String(128), primary_key=True),
    Column("first_seen_ms", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger, nullable=False),
    Column("frames", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

# Written by triggers only (cloud_decoder.store.triggers): frames and their bytes by state.
tallies = Table(
    "tallies",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("state", String(10), primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("frames", BigInteger, nullable=False),  # of one slot alone it may be less than none
    Column("bytes", BigInteger, nullable=False),
)

# Written by triggers only: the frames of each source that wait to be decoded.
source_tallies = Table(
    "source_tallies",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("source", String(128), primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("waiting", BigInteger, nullable=False),  # of one slot alone it may be less than none
)

# Requests for more of a picture (cloud_decoder.store.requests). The answer is the frame of the same id.
requests = Table(
    "requests",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("tenant", String(64), nullable=False),
    Column("id", Uuid, nullable=False),
    Column("parent", Uuid, nullable=False),
    Column("source", String(128), nullable=False),  # of the parent
    Column("box", String(128), nullable=False),  # whose stream the request takes
    Column("kind", String(8), nullable=False),  # better, region, original, now
    Column("region", JSON),
    Column("max_bytes", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),  # charged to the source's hour: max_bytes, then what the answer took
    Column("created_ms", BigInteger, nullable=False),
    Column("deadline_ms", BigInteger, nullable=False),
    Column("finished_ms", BigInteger),
    Column("state", String(10), nullable=False),  # open, answered, refused
    Column("reason", String(16)),
    Column("detail", Text),
    UniqueConstraint("tenant", "id", name="requests_tenant_id_key"),
    Index("requests_by_parent", "tenant", "parent", "seq"),
    Index("requests_by_source", "tenant", "source", "created_ms", "bytes"),
    sqlite_autoincrement=True,
)
_open = requests.c.state == "open"
Index("requests_open", requests.c.deadline_ms, sqlite_where=_open, postgresql_where=_open)
Index("requests_open_by_source", requests.c.tenant, requests.c.source, sqlite_where=_open, postgresql_where=_open)

# Written by triggers only (cloud_decoder.store.triggers): what became of frames and requests.
events = Table(
    "events",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("txid", BigInteger, nullable=False),  # of the transaction, on PostgreSQL; else 0
    Column("tenant", String(64), nullable=False),
    Column("kind", String(10), nullable=False),  # the state that the frame has entered, or request
    Column("id", Uuid, nullable=False),  # of the frame, or of the request
    Index("events_by_tenant", "tenant", "txid", "seq"),
    sqlite_autoincrement=True,
)

# One row: the latest time that the store has seen (cloud_decoder.store.clock), a number that readiness raises, and
# the newest event that was removed from the log.
store_clock = Table(
    "store_clock",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seen_ms", BigInteger),
    Column("probes", BigInteger, nullable=False),
    Column("trimmed_txid", BigInteger, nullable=False, server_default="0"),
    Column("trimmed_seq", BigInteger, nullable=False, server_default="0"),
    Column("refused_ms", BigInteger),  # seen_ms when the clock was refused, until the frames since then are corrected
)
