"""Puts the shipped model into a wheel as aeic/models/, so that an installed `aeic` finds it (aeic.bundle).

An editable install needs none of this: there the model lies beside the sources.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedModel(BuildHookInterface):
    """Called by hatchling."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add models/aeic-se-nano, if it is there, to a wheel that is no editable one."""
        name = "models/aeic-se-nano"
        if self.target_name == "wheel" and version != "editable" and (Path(self.root) / name).is_dir():
            build_data["force_include"][name] = f"aeic/{name}"
