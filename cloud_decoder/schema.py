"""The two tables of the store, for SQLite and PostgreSQL alike. What they mean stands in :mod:`cloud_decoder.store`."""

from __future__ import annotations

from sqlalchemy import (
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
)

metadata = MetaData()

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
    Column("available_ms", BigInteger),  # when its picture was first there
    Column("priority", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("rate", Integer, nullable=False),
    Column("fingerprint", String(6), nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("digest", String(64), nullable=False),  # sha256 of the bitstream, hex
    Column("bitstream", LargeBinary),  # NULL once pruned
    Column("state", String(10), nullable=False),
    Column("wanted", Boolean, nullable=False),  # decode unasked
    Column("attempts", Integer, nullable=False, default=0),
    Column("lease_owner", String(64)),
    Column("lease_until", Float),  # seconds since 1970
    Column("reason", Text),
    Column("latents_digest", String(64)),
    Column("timings", JSON),  # seconds: queue, entropy, synthesis, image
    UniqueConstraint("tenant", "id"),
    Index("frames_waiting", "state", "wanted", "priority", "seq"),
    Index("frames_by_source", "tenant", "source", "seq"),
    sqlite_autoincrement=True,
)

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
