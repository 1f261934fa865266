"""What the host allows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from aeic_service import host_limits
from aeic_service.host_limits import HostLimits


def _group(root: Path, path: str, limit: str) -> None:
    (root / path).mkdir(parents=True, exist_ok=True)
    (root / path / "memory.max").write_text(limit + "\n")


def test_the_least_limit_of_the_groups_counts(tmp_path: Path) -> None:
    root, own = tmp_path / "groups", tmp_path / "cgroup"
    own.write_text("12:cpu:/elsewhere\n0::/system.slice/aeic.service\n")
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert host_limits.memory_bytes(own, root) == everything
    _group(root, "system.slice/aeic.service", "max")
    assert host_limits.memory_bytes(own, root) == everything
    _group(root, "system.slice", str(2 << 30))
    assert host_limits.memory_bytes(own, root) == min(everything, 2 << 30)
    _group(root, "system.slice/aeic.service", str(1 << 30))
    assert host_limits.memory_bytes(own, root) == 1 << 30


def test_in_a_container_the_mounted_group_counts(tmp_path: Path) -> None:
    root, own = tmp_path / "groups", tmp_path / "cgroup"
    own.write_text("0::/../../pod\n")
    _group(root, ".", str(3 << 20))
    assert host_limits.memory_bytes(own, root) == 3 << 20
    assert host_limits.memory_bytes(tmp_path / "none", root) >= 3 << 20


def test_this_process_has_limits() -> None:
    limits = HostLimits.read()
    assert limits.memory_bytes > 1 << 20 and (limits.files is None or limits.files > 16)


def test_the_soft_limit_on_open_files_is_raised_to_the_hard_one() -> None:
    program = """
import resource
from aeic_service import host_limits
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 2048))
host_limits.raise_open_files()
print(host_limits.open_files())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "2048\n"
