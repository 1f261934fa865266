"""Signs of a driver: native Linux, containers, WSL2 and Jetson."""

from __future__ import annotations

from pathlib import Path

import pytest

from aeic.runtime.driver import SIGNS, nvidia_driver


@pytest.mark.parametrize("sign", SIGNS)
def test_each_sign_is_enough(sign: str, tmp_path: Path) -> None:
    assert nvidia_driver(tmp_path) == ""
    (tmp_path / sign.lstrip("/")).parent.mkdir(parents=True)
    (tmp_path / sign.lstrip("/")).touch()
    assert nvidia_driver(tmp_path) == sign
