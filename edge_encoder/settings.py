"""Every setting of the edge: its name, unit, default and bounds.

Values come from the environment (`AEIC_EDGE_PORT=8080`), then from the TOML file that AEIC_EDGE_CONFIG names
(`port = 8080`), then from the defaults here. An unknown setting or an invalid value ends the start with a message.
docs/reference/edge.md holds the same table; a test compares the two.
"""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from aeic.identifiers import is_name
from aeic_service.settings import ServiceSettings
from edge_encoder.encoding import ColourFixChoice, EntropyChoice, PictureProcessChoice, Preset, ProviderChoice
from edge_encoder.originals.cipher import parse_key
from edge_encoder.source_settings import CameraSettings, FolderSettings, MqttSettings
from edge_encoder.spool.record import FullPolicy


def split_address(text: str, name: str = "cloud_address") -> tuple[str, int]:
    """Host (an IPv6 address without its brackets) and port of `host:port`. ValueError that says what is wrong."""
    if "//" in text or "/" in text:
        raise ValueError(f"{name} {text!r} is a URL; write host:port, without http:// and path")
    host, colon, port = text.rpartition(":")
    if not colon or not port:
        raise ValueError(f"{name} {text!r} has no port; write host:port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            raise ValueError(f"{name} {text!r} has no IPv6 address in its brackets") from None
    elif ":" in host:
        raise ValueError(f"{name} {text!r}: write an IPv6 address in brackets, as in [::1]:9090")
    if not host or any(character.isspace() for character in host):
        raise ValueError(f"{name} {text!r} has no host; write host:port")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"{name} {text!r} has no port from 1 to 65535; write host:port")
    return host, int(port)


Wait = Literal["received", "spooled", "delivered"]


class EdgeSettings(ServiceSettings):
    """Settings of one edge; construct without arguments to read environment and file."""

    prefix = "AEIC_EDGE_"
    may_be_empty = ("cloud_address",)
    model_config = SettingsConfigDict(env_prefix=prefix)

    host: str = Field("127.0.0.1", description="Address the HTTP API listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port of the HTTP API; 0 picks a free one.")
    source_id: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=128,
        description="Name of this box, sent to the cloud; the host name by default.",
    )
    data_dir: Path = Field(Path("var/edge"), description="Folder of the spool; created if missing.")
    bundle: Path | None = Field(None, description="Model bundle; by default AEIC_BUNDLE, or else the shipped one.")

    bundles_dir: Path | None = Field(
        None,
        description="Folder of staged bundles (edge_encoder.bundle_update); the current one overrides bundle.",
    )
    bundle_trial_frames: int = Field(20, ge=1, description="Accepted frames that confirm a bundle on trial.")

    provider: ProviderChoice = Field(
        "auto",
        description="Runtime of the analysis; auto uses CUDA if it works, else the faster runtime of this processor.",
    )
    entropy: EntropyChoice = Field(
        "auto",
        description="Where the entropy model runs: `cpu`, `device` (CUDA), or `auto`: on the GPU if the analysis runs"
        " there and the bundle has entropy_gpu.onnx.",
    )
    entropy_check_frames: int = Field(
        256, ge=0, description="Check every Nth frame of a GPU on the CPU too; 0 disables the check."
    )
    cuda_graphs: bool = Field(
        False, description="Replay the entropy model on a GPU as CUDA graphs, for sizes that come often."
    )
    threads: int = Field(1, ge=0, le=256, description="Threads of one encode; 0 uses every core.")
    encode_workers: int = Field(
        0, ge=0, le=64, description="Pictures encoded at the same time; 0 means one per core, at most 4."
    )
    encode_queue_frames: int = Field(8, ge=1, le=10_000, description="Pictures that may wait; beyond that, 429.")
    max_body_bytes: int = Field(
        32 << 20, ge=1024, le=1 << 30, description="Largest picture file accepted; larger ones get 413."
    )
    max_pixels: int = Field(
        8192 * 8192,
        ge=256,
        le=8192 * 8192,
        description="Largest picture accepted, in pixels; larger ones get 413. Lower if the memory is"
        " small: a picture takes 12 bytes per pixel and 500 MiB besides.",
    )
    max_pixels_at_once: int = Field(
        0, ge=0, description="Pixels processed at once; 0 allows as many as fit into half of the memory."
    )
    picture_process: PictureProcessChoice = Field(
        "auto",
        description="Files read in a separate process, which can be killed: `always` all, `never` none, `auto` all but"
        " JPEG of one scan.",
    )
    uploads_max_bytes: int = Field(
        128 << 20,
        ge=1024,
        le=1 << 34,
        description="Bytes of request bodies held in memory at once; beyond that, a POST gets 429.",
    )
    read_timeout_seconds: float = Field(
        20.0, gt=0, le=600, description="Time in which a client must send headers and body."
    )
    wait_max_seconds: float = Field(60.0, ge=0, le=3600, description="Longest wait that ?wait=delivered may ask for.")

    preset: Preset | None = Field(
        None,
        description="Default size of a frame, for requests without one: 300B, 1kB or 2kB; pictures are scaled down.",
    )
    max_side: int | None = Field(
        None, ge=16, le=8192, description="Pictures with a longer side, in pixels, are scaled down to it."
    )
    max_bytes: int | None = Field(
        None, ge=10, le=1 << 20, description="Maximum bytes of a frame, for requests without a size."
    )
    target_bytes: int | None = Field(
        None, ge=10, le=1 << 20, description="Target bytes of a frame, for requests without a size."
    )

    stretch: bool = Field(
        False, description="Spread the grey levels of 16-bit pictures over the whole range, for thermal cameras."
    )
    colour_fix: ColourFixChoice = Field(
        "never",
        description="Which frames carry 12 bytes with which the cloud corrects the colours: `always` all, `never` none,"
        " `auto` those of pictures over 768x768 pixels. Upgrade the cloud first.",
    )

    default_wait: Wait = Field("spooled", description="The wait of a POST without ?wait=.")
    received_max_frames: int = Field(
        100,
        ge=1,
        le=100_000,
        description="Received pictures (?wait=received) that may wait to be encoded; beyond that, 429.",
    )
    received_max_bytes: int = Field(
        64 << 20, ge=1024, description="Bytes of received pictures that may wait; beyond that, 429."
    )

    watch_dir: Path | None = Field(None, description="A folder whose new pictures are encoded too; none by default.")
    watch_seconds: float = Field(1.0, gt=0, description="Time between two scans of watch_dir.")
    watch_settle_seconds: float = Field(
        2.0, ge=0, description="A file in watch_dir that has not changed for this long is complete."
    )
    watch_recursive: bool = Field(False, description="Include the subfolders of watch_dir.")
    watch_keep: bool = Field(True, description="Move taken files to watch_dir/done; otherwise delete them.")

    camera_url: SecretStr | None = Field(
        None, description="A camera (/dev/video0), RTSP or HTTP URL or video file as a source; none by default."
    )
    camera_source_id: str = Field("", max_length=128, description="Name of the camera; the name of the box by default.")
    camera_fps: float = Field(1.0, gt=0, le=60, description="Frames per second taken from the camera.")
    camera_motion: float = Field(
        0.0, ge=0, le=1, description="Skip frames in which a smaller share than this changed; 0 skips none."
    )
    camera_still_seconds: float = Field(
        60.0, ge=0, description="With camera_motion: after this time without motion a frame is sent anyway; 0 never."
    )
    camera_timeout_seconds: float = Field(
        10.0, gt=0, description="A camera that delivers no frame for this long is reopened."
    )

    cameras: tuple[CameraSettings, ...] = Field(
        (), description="More cameras, each with its own settings; [[cameras]] in the file, JSON in the variable."
    )
    folders: tuple[FolderSettings, ...] = Field(
        (), description="More folders, each with its own settings; [[folders]] in the file, JSON in the variable."
    )

    mqtt: tuple[MqttSettings, ...] = Field(
        (), description="Topics of MQTT brokers as sources; [[mqtt]] in the file, JSON in the variable."
    )

    spool_max_bytes: int = Field(
        256 << 20, ge=1 << 16, description="Limit on the bytes of frames that are not yet acknowledged."
    )
    spool_max_age_seconds: float = Field(
        0.0, ge=0, description="Frames older than this are dropped unsent and counted; 0 keeps them without limit."
    )
    spool_full_policy: FullPolicy = Field(
        "refuse", description="At this limit: refuse the new frame (507), drop-oldest, or drop-lowest-priority."
    )
    history_frames: int = Field(20_000, ge=0, description="Finished frames whose state is remembered, without bytes.")
    target_age_seconds: float = Field(
        0.0,
        ge=0,
        description="Keep the oldest frame younger than this by lowering the default rate; 0 never lowers it.",
    )

    originals_max_bytes: int = Field(
        0, ge=0, description="Bytes of originals kept after their frames were made, for requests; 0 keeps none."
    )
    originals_max_age_seconds: float = Field(
        86_400.0, ge=0, description="Age at which a kept original is deleted; 0 keeps it while there is room."
    )
    request_max_bytes: int = Field(
        16_384,
        ge=0,
        le=1 << 20,
        description="Maximum bytes of an answer to a request of the cloud; 0 forbids requests.",
    )
    originals_key: SecretStr | None = Field(
        None, description="Encrypts kept originals: 64 hexadecimal digits, for AES-256-GCM."
    )
    request_original_max_bytes: int = Field(
        65_536,
        ge=0,
        le=1 << 28,
        description="Maximum bytes of an original that is sent as a picture file; 0 sends none.",
    )
    request_now: bool = Field(True, description="Let the cloud ask live cameras for a picture at once.")
    request_bytes_per_hour: int = Field(
        73_728, ge=0, description="Maximum bytes of the answers about one source within an hour."
    )

    cloud_address: str = Field(
        "127.0.0.1:9090", description="host:port of the cloud's gRPC; if empty, nothing is sent."
    )
    proxy: str = Field(
        "environment",
        description="HTTP proxy to the cloud: environment (grpc_proxy, https_proxy, http_proxy, no_proxy), none, or"
        " http://host:port. Loopback is never proxied.",
    )
    token: SecretStr | None = Field(None, description="Secret of this box, sent once per stream.")
    tls: bool = Field(False, description="TLS to the cloud, its certificate checked.")
    tls_ca: Path | None = Field(None, description="PEM of the authorities to trust; the system's by default.")
    tls_cert: Path | None = Field(None, description="PEM certificate of this box, for mutual TLS.")
    tls_key: Path | None = Field(None, description="PEM key that belongs to tls_cert.")
    tls_server_name: str = Field("", description="Name expected in the cloud's certificate, if not the address.")
    window_frames: int = Field(64, ge=1, le=10_000, description="Frames sent and not yet acknowledged, at most.")
    ack_timeout_seconds: float = Field(
        30.0, gt=0, description="Reconnect if no acknowledgement arrives for this long while frames are in flight."
    )
    backoff_min_seconds: float = Field(0.5, gt=0, description="First pause after a broken stream.")
    backoff_max_seconds: float = Field(
        60.0, gt=0, description="Longest pause between attempts. The uplink never gives up."
    )
    keepalive_seconds: float = Field(
        60.0, ge=10, description="HTTP/2 ping on an idle stream, to detect a half-open NAT connection."
    )
    keepalive_timeout_seconds: float = Field(
        20.0, ge=1, description="Reconnect if a ping stays unanswered for this long."
    )

    drain_timeout_seconds: float = Field(
        5.0, ge=0, description="After SIGTERM, time to send what is spooled; the rest is sent after the next start."
    )
    tracing: bool = Field(False, description="OpenTelemetry traces to OTEL_EXPORTER_OTLP_ENDPOINT; extra `tracing`.")

    @model_validator(mode="after")
    def _belong_together(self) -> EdgeSettings:
        for name in ("source_id", "camera_source_id"):
            if (value := getattr(self, name)) and not is_name(value):
                raise ValueError(
                    f"{name}: the cloud accepts at most 128 printable characters in at most 255 bytes of UTF-8"
                )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together; set both or none")
        if self.tls_cert is not None and not self.tls:
            raise ValueError("tls_cert is set but tls is not; set AEIC_EDGE_TLS=1")
        for name in ("tls_ca", "tls_cert", "tls_key"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"{name}: there is no file {path}")
        if self.originals_key is not None and self.originals_key.get_secret_value():
            try:
                parse_key(self.originals_key.get_secret_value())
            except ValueError as error:
                raise ValueError(f"originals_key: {error}") from None
        if self.watch_dir is not None and not self.watch_dir.is_dir():
            raise ValueError(f"watch_dir: there is no folder {self.watch_dir}")
        names = [source.name for source in (*self.all_cameras(), *self.all_folders(), *self.mqtt)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are called {name}; each needs its own name")
        if self.backoff_min_seconds > self.backoff_max_seconds:
            raise ValueError("backoff_min_seconds is larger than backoff_max_seconds")
        if self.cloud_address:
            split_address(self.cloud_address)
        if self.proxy not in ("environment", "none"):
            if not self.proxy.startswith("http://"):
                raise ValueError("proxy: write environment, none, or http://host:port")
            split_address(self.proxy.removeprefix("http://").rpartition("@")[2].rstrip("/"), "proxy")
        return self

    @property
    def cloud_is_loopback(self) -> bool:
        """Whether the cloud is on this machine."""
        if not self.cloud_address:
            return False
        host, _ = split_address(self.cloud_address)
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    def all_cameras(self) -> tuple[CameraSettings, ...]:
        """The cameras of the list, and that of camera_url, which is called `camera`."""
        if self.camera_url is None:
            return self.cameras
        single = CameraSettings(
            name="camera",
            source_id=self.camera_source_id or self.source_id,
            url=self.camera_url,
            fps=self.camera_fps,
            motion=self.camera_motion,
            still_seconds=self.camera_still_seconds,
            timeout_seconds=self.camera_timeout_seconds,
        )
        return (single, *self.cameras)

    def all_folders(self) -> tuple[FolderSettings, ...]:
        """The folders of the list, and watch_dir, which is called `folder`."""
        if self.watch_dir is None:
            return self.folders
        single = FolderSettings(
            name="folder",
            source_id=self.source_id,
            path=self.watch_dir,
            seconds=self.watch_seconds,
            settle_seconds=self.watch_settle_seconds,
            recursive=self.watch_recursive,
            keep=self.watch_keep,
        )
        return (single, *self.folders)
