"""The service's settings.

Environment ``AEIC_CLOUD_*``, then the TOML file of ``AEIC_CLOUD_CONFIG``; units in the names. docs/reference/cloud.md
has the same table; a test compares.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from aeic_service.settings import ServiceSettings


class RetentionPolicy(BaseModel):
    """Limits for the sources that it matches. In the TOML file each is a table, ``[[retention_policies]]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenant: str = Field("*", max_length=64, description="Tenant, or a pattern such as `acme-*`.")
    source: str = Field("*", max_length=128, description="Source, or a pattern such as `mast-*`.")
    days: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Instead of `retention_days`; 0 keeps them."
    )
    bytes: int | None = Field(None, ge=0, description="Bytes of bitstreams kept of each source; 0 keeps all.")

    def matches(self, tenant: str, source: str) -> bool:
        """Whether it is about this source."""
        return fnmatchcase(tenant, self.tenant) and fnmatchcase(source, self.source)


class Settings(ServiceSettings):
    """Every knob, with its default. ``model_fields`` is what the docs table is tested against."""

    prefix = "AEIC_CLOUD_"
    model_config = SettingsConfigDict(env_prefix=prefix)

    host: str = Field("127.0.0.1", description="Address that HTTP and gRPC listen on.")
    port: int = Field(8081, ge=0, le=65535, description="HTTP port; 0 picks a free one.")
    grpc_port: int = Field(9090, ge=0, le=65535, description="gRPC port; 0 picks a free one.")
    grpc_tls_cert: Path | None = Field(None, description="PEM certificate chain; with the key, gRPC uses TLS.")
    grpc_tls_key: Path | None = Field(None, description="PEM private key of the certificate.")
    grpc_tls_client_ca: Path | None = Field(
        None,
        description="PEM of the authorities of the edges' certificates; with it, clients without one cannot connect.",
    )
    tokens: SecretStr = Field(
        SecretStr(""),
        description="Bearer tokens as `tenant:token,tenant:token`; empty: no token is needed and there is one tenant.",
    )

    role: Literal["all", "ingest", "worker"] = Field(
        "all", description="`all`; in a fleet `ingest` (a front end, no decoder) or `worker` (no gRPC)."
    )
    reuse_port: bool = Field(False, description="Let several front ends of one machine listen on the same ports.")

    bundle: Path | None = Field(None, description="Folder of the model; if empty, `AEIC_BUNDLE`, then the shipped one.")
    other_bundles: str = Field(
        "", description="Folders of further models, separated by commas; loaded when one of their frames arrives."
    )
    model_bytes: int = Field(
        8 * 2**30,
        ge=0,
        description="Memory for loaded models, in bytes; the least recently used is unloaded; 0 keeps all.",
    )
    isolate: bool = Field(
        True, description="Run the synthesis in a child process, so that a crash does not end the service."
    )
    batch_seconds: float = Field(
        120.0, gt=0, description="Time limit of one batch; after it, the synthesis process is killed."
    )
    device: str = Field(
        "auto",
        description="`auto`, `onnx`, `openvino`, `cpu` or `cuda` (torch), or `fastest` (the fastest"
        " installed on this CPU, by measurement); `cuda:N` for one GPU, several with commas.",
    )
    entropy: Literal["auto", "cpu", "device", "triton"] = Field(
        "auto",
        description="Where frames are entropy-decoded: `cpu`, `device`, or `auto`: on a GPU if there is one;"
        " `triton`: on a GPU, with kernels that have not run on one yet."
        " Without a GPU, `device` and `triton` run torch on the CPU.",
    )
    entropy_check_frames: int = Field(
        256, ge=0, description="Check every Nth frame decoded on a device on the CPU too; 0 disables the check."
    )
    threads: int = Field(0, ge=0, description="CPU threads of one inference; 0 uses all cores.")
    entropy_workers: int = Field(0, ge=0, description="Frames entropy-decoded at once; 0 uses half the cores.")

    data_dir: Path = Field(Path("var/cloud"), description="Folder of the store and the cache; created if missing.")
    database_url: SecretStr | None = Field(None, description="SQLAlchemy URL; empty uses SQLite in the data folder.")
    instance: str = Field(
        "cloud", description="Name of this worker, whose old leases are freed at start; generated in a fleet."
    )
    claim_frames: int = Field(0, ge=0, description="Frames a `worker` leases at once; 0 means four batches.")
    poll_seconds: float = Field(0.25, gt=0, description="How often an idle `worker` looks for frames.")
    eager: str = Field("all", description="What is decoded on arrival: `all`, `none`, or sources separated by commas.")
    lease_seconds: float = Field(60.0, gt=0, description="How long a worker holds a frame without renewing its lease.")
    max_attempts: int = Field(
        3,
        ge=1,
        description="Deaths of the decoder process with one frame alone, or of the service while it decodes that frame,"
        " before the frame goes to quarantine.",
    )
    metrics_sources: int = Field(
        200,
        ge=0,
        le=10_000,
        description="Number of sources with their own metrics. With tokens, there are none unless this is set.",
    )
    retention_days: float = Field(0.0, ge=0, description="Age at which decoded frames are pruned; 0 keeps them.")
    retention_bytes: int = Field(
        0, ge=0, description="Bytes of bitstreams kept; the oldest decoded frames are pruned first; 0 keeps all."
    )
    retention_grace_hours: float = Field(
        24.0, ge=0, description="Time in which pruned frames can be brought back with `aeic store undelete`."
    )
    retention_policies: tuple[RetentionPolicy, ...] = Field(
        (),
        description="Limits for some sources, of which the first match applies; [[retention_policies]] in the file,"
        " JSON in the variable.",
    )
    events_kept: int = Field(
        1_000_000, ge=1000, description="Events kept for clients that reconnect, for all tenants together."
    )
    allow_delete: Literal["auto", "always", "never"] = Field(
        "auto", description="Whether clients may delete frames; `auto` allows it where tokens are set."
    )
    max_clock_jump_days: float = Field(
        7.0, gt=0, description="A clock further ahead of the last time seen is not trusted, and nothing is pruned."
    )

    cache_url: str = Field(
        "", description="Shared cache, `file:///...` or `s3://...`; empty: a folder in the data folder."
    )
    cache_bytes: int = Field(2 * 2**30, ge=0, description="Bytes of reconstructions kept on disk.")
    max_batch: int = Field(0, ge=0, description="Pictures or tiles in one batch; 0 means 8 on a GPU, 1 on a CPU.")
    max_batch_pixels: int = Field(4 * 2**20, ge=1, description="Pixels in one batch.")
    aging_seconds: float = Field(2.0, gt=0, description="Waiting this long raises a frame's priority by one.")
    max_queue: int = Field(256, ge=1, description="Requested decodes that may wait; beyond that, 429.")
    max_pixels_at_once: int = Field(
        0, ge=0, description="Pixels processed at once; 0 allows as many as fit into half of the memory."
    )
    max_waiters: int = Field(512, ge=1, description="Long polls and event streams held open; beyond that, 429.")
    max_wait_seconds: float = Field(60.0, ge=0, description="Maximum of `wait=` and `timeout=`.")

    edge_url: str = Field(
        "", description="HTTP address of an edge that encodes pictures dropped on the page; none by default."
    )
    edge_tenant: str = Field(
        "", description="Tenant of the edge at `edge_url`; only pictures of this tenant are sent there."
    )
    grafana_url: str = Field(
        "", pattern=r"^(https?://[^\s]+)?$", description="HTTP address of a Grafana dashboard; the page links to it."
    )
    max_upload_bytes: int = Field(32 * 2**20, ge=1024, description="Largest picture file passed on to that edge.")

    max_bitstream_bytes: int = Field(2**20, ge=16, description="Largest frame accepted, in bytes.")
    uploads_max_bytes: int = Field(
        128 * 2**20,
        ge=1024,
        description="Request bodies held in memory during upload, in total; above this, 429.",
    )
    max_pixels: int = Field(8192 * 8192, ge=256, description="Largest picture decoded, in pixels.")
    body_timeout_seconds: float = Field(10.0, gt=0, description="Time for a request body to arrive.")
    ingest_window: int = Field(64, ge=1, le=4096, description="Unacknowledged frames allowed on one stream.")
    request_bytes_per_hour: int = Field(
        64 * 2**10,
        ge=0,
        description="Bytes that may be asked of one source within an hour, for more of its pictures; 0 forbids it.",
    )
    request_original_bytes: int = Field(
        8 * 2**20,
        ge=0,
        le=2**24,
        description="Largest picture file taken from a box as an original, in bytes; 0 takes none.",
    )
    max_streams: int = Field(
        1024,
        ge=1,
        description="Concurrent gRPC calls of all tenants, and connections; lower if the open-file limit is low.",
    )
    commit_frames: int = Field(256, ge=1, description="Frames in one commit of the store, at most.")
    tracing: bool = Field(False, description="OpenTelemetry traces to OTEL_EXPORTER_OTLP_ENDPOINT; extra `tracing`.")
    drain_seconds: float = Field(20.0, gt=0, description="Time to finish work in progress after SIGTERM.")

    @field_validator("database_url")
    @classmethod
    def _is_a_url(cls, url: SecretStr | None) -> SecretStr | None:
        try:
            return url if url is None or make_url(url.get_secret_value()) else None
        except (ArgumentError, ValueError):  # without the text: it may hold a password
            raise ValueError(
                "this is not a SQLAlchemy URL: write postgresql+psycopg://USER:PASSWORD@HOST/NAME"
            ) from None
