"""What the host allows this process: open files and memory, read once at start."""

from __future__ import annotations

import contextlib
import os
import resource
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_FILES = 65_536


@dataclass(frozen=True)
class HostLimits:
    """``files``: open files, None for no limit. ``memory_bytes``: what the process and its children may use."""

    files: int | None
    memory_bytes: int

    @classmethod
    def read(cls) -> HostLimits:
        """RLIMIT_NOFILE, and the least of the machine's memory, ``memory.max`` of cgroup v2 and RLIMIT_AS."""
        return cls(open_files(), memory_bytes())


def raise_open_files() -> None:
    """Raise the soft RLIMIT_NOFILE, often 1024, to the hard one, at most 65,536: a connection is a file.

    The low default is for programs that use ``select``, which these services do not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may refuse it, and the limit stays as it was
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_files() -> int | None:
    """The soft RLIMIT_NOFILE; None if there is no limit."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if files == resource.RLIM_INFINITY else files


def memory_bytes(cgroup: Path = _CGROUP, cgroups: Path = _CGROUPS) -> int:
    """The least of the machine's memory, RLIMIT_AS, and ``memory.max`` of the process's cgroup and of those above it.

    ``cgroup`` is the file that names the process's cgroup, ``cgroups`` where version 2 is mounted.
    """
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        least = min(least, address_space)
    for folder in _own_cgroups(cgroup, cgroups):
        try:
            text = (folder / "memory.max").read_text().strip()
        except OSError:  # the root has no such file, and a container may not see the groups above its own
            continue
        if text.isdecimal():
            least = min(least, int(text))
    return least


def _own_cgroups(cgroup: Path, cgroups: Path) -> list[Path]:
    """The folder of the process's cgroup (version 2: the line ``0::/path``) and all above it."""
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return []
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::/")), "/")
    own = cgroups / path.strip("/")
    if ".." in own.parts:  # the process is outside the group that is mounted as the root of its container
        own = cgroups
    return [folder for folder in (own, *own.parents) if folder.is_relative_to(cgroups)]
