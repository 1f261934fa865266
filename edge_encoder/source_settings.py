"""Settings of one source: a camera, a watched folder or a topic of an MQTT broker. settings.py has the lists of them.

In the TOML file each is a table, `[[cameras]]`, `[[folders]]` or `[[mqtt]]`.
"""

from __future__ import annotations

import urllib.parse
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from aeic.identifiers import is_name
from edge_encoder.encoding import Preset


class SourceSettings(BaseModel):
    """What all sources have. The limits of the box apply where a source has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$",
        description="Short name in the log, the status and the metrics: lower-case letters, digits, - and _.",
    )
    source_id: str = Field(
        "", max_length=128, description="Name in the cloud; by default that of the box, a slash and the short name."
    )
    preset: Preset | None = Field(None, description="About 300B, 1kB or 2kB per picture.")
    max_side: int | None = Field(None, ge=16, le=8192, description="Longest side in pixels.")
    max_bytes: int | None = Field(None, ge=10, le=1 << 20, description="Maximum bytes of a frame.")
    target_bytes: int | None = Field(None, ge=10, le=1 << 20, description="Target bytes of a frame, met if possible.")
    rate: str | None = Field(
        None, max_length=32, description="Rate point; with a size in bytes, the highest one to try."
    )
    stretch: bool | None = Field(None, description="Spread the grey levels of 16-bit pictures; by default as the box.")
    priority: int = Field(0, ge=0, le=255, description="Frames with a higher priority are sent first.")

    originals_max_bytes: int | None = Field(
        None, ge=0, description="Maximum bytes of its originals that are kept; 0 keeps none."
    )

    @field_validator("source_id")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if value and not is_name(value):
            raise ValueError("the cloud accepts at most 128 printable characters in at most 255 bytes of UTF-8")
        return value

    def id_at(self, box: str) -> str:
        """Its name in the cloud, as a source of the box of that name."""
        return self.source_id or f"{box}/{self.name}"


class CameraSettings(SourceSettings):
    """A camera, a stream, a snapshot URL or a video file."""

    url: SecretStr = Field(description="A camera (/dev/video0), RTSP or HTTP URL, snapshot URL or video file.")
    fps: float = Field(
        1.0, gt=0, le=60, description="Frames per second taken from the camera; less than 1 is possible."
    )
    motion: float = Field(
        0.0, ge=0, le=1, description="Skip frames in which a smaller share than this changed; 0 skips none."
    )
    still_seconds: float = Field(
        60.0, ge=0, description="With motion: after this time without motion a frame is sent anyway; 0 never."
    )
    timeout_seconds: float = Field(10.0, gt=0, description="A camera that delivers no frame for this long is reopened.")


class FolderSettings(SourceSettings):
    """A folder whose new pictures are encoded."""

    path: Path = Field(description="The folder.")
    seconds: float = Field(1.0, gt=0, description="Time between two scans.")
    settle_seconds: float = Field(2.0, ge=0, description="A file that has not changed for this long is complete.")
    recursive: bool = Field(False, description="Include its subfolders.")
    keep: bool = Field(True, description="Move taken files to done/ in the folder; otherwise delete them.")

    @field_validator("path")
    @classmethod
    def _is_folder(cls, value: Path) -> Path:
        if not value.is_dir():
            raise ValueError(f"there is no folder {value}")
        return value


class MqttSettings(SourceSettings):
    """A topic of an MQTT broker, each of whose messages is a picture file."""

    url: SecretStr = Field(description="The broker: mqtt://HOST[:1883], mqtts://HOST[:8883], with USER:PASSWORD@ too.")
    topic: str = Field(min_length=1, max_length=1024, description="The topic, without wildcards.")
    client_id: str = Field(
        "", max_length=128, description="Names the session at the broker; by default aeic- and the name in the cloud."
    )
    tls_ca: Path | None = Field(None, description="PEM of the authorities to trust; the system's by default.")

    @field_validator("url")
    @classmethod
    def _is_broker(cls, value: SecretStr) -> SecretStr:
        try:
            url = urllib.parse.urlsplit(value.get_secret_value())
            known = url.scheme in ("mqtt", "mqtts") and bool(url.hostname) and url.port != 0
        except ValueError:
            known = False
        if not known or url.path.strip("/") or url.query:
            raise ValueError("write mqtt://HOST:PORT or mqtts://HOST:PORT, with USER:PASSWORD@ before HOST if needed")
        return value

    @field_validator("topic")
    @classmethod
    def _is_one_topic(cls, value: str) -> str:
        if set(value) & set("+#\0"):
            raise ValueError("a topic with wildcards would mix its cameras under one name: list each topic separately")
        return value

    @field_validator("tls_ca")
    @classmethod
    def _is_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"there is no file {value}")
        return value
