"""The field in short; `make field` takes ten minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.edge.field import Field

pytest.importorskip("av", reason="PyAV comes with the extra edge-camera")


async def test_one_dead_camera_and_poisoned_files_stop_nothing_else(tmp_path: Path) -> None:
    result = await Field(tmp_path, 6.0).run()
    assert result["problems"] == []
