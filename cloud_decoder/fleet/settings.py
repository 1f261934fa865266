"""Fleet size settings, from ``AEIC_FLEET_*``; docs/how-to/fleet.md has the same table, a test compares."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class FleetSettings(BaseSettings):
    """Every knob of ``aeic cloud --ray``; what each member does is AEIC_CLOUD_*."""

    model_config = SettingsConfigDict(env_prefix="AEIC_FLEET_", extra="forbid", env_ignore_empty=True)

    address: str = Field("", description="Ray cluster to join, `auto` or `ray://...`; empty starts one here.")
    fronts: int = Field(2, ge=1, description="Front ends, behind one address on each machine.")
    min_workers: int = Field(1, ge=0, description="Workers that always run.")
    max_workers: int = Field(8, ge=1, description="Maximum number of workers.")
    worker_gpus: float = Field(0.0, ge=0, description="GPUs of one worker, for Ray; 0 decodes on CPUs.")
    worker_cpus: float = Field(1.0, ge=0, description="CPU cores of one worker, for Ray.")
    drain_target_seconds: float = Field(30.0, gt=0, description="Target time in which a backlog is decoded.")
    max_age_seconds: float = Field(
        10.0, gt=0, description="One more worker is started when the oldest job waits longer than this."
    )
    idle_seconds: float = Field(
        120.0, gt=0, description="After the queue has been empty this long, one worker is stopped."
    )
    look_seconds: float = Field(2.0, gt=0, description="How often the queue is checked.")
