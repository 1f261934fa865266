"""Signs of a driver: native Linux, containers, WSL2 and Jetson."""

from __future__ import annotations

from pathlib import Path

import pytest

from aeic.runtime.driver import SIGNS, driver_version, nvidia_driver


@pytest.mark.parametrize("sign", SIGNS)
def test_each_sign_is_enough(sign: str, tmp_path: Path) -> None:
    assert nvidia_driver(tmp_path) == ""
    (tmp_path / sign.lstrip("/")).parent.mkdir(parents=True)
    (tmp_path / sign.lstrip("/")).touch()
    assert nvidia_driver(tmp_path) == sign


def test_the_version_is_what_the_driver_says(tmp_path: Path) -> None:
    assert driver_version(tmp_path) == ""
    file = tmp_path / "proc/driver/nvidia/version"
    file.parent.mkdir(parents=True)
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\nGCC version:  13\n")
    assert driver_version(tmp_path) == "NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27"
    file.write_text("")
    assert driver_version(tmp_path) == ""
