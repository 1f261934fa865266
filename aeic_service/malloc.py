"""The C library's allocator."""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def give_large_blocks_back() -> None:
    """Make glibc return picture-sized blocks to the system when they are freed. By default it raises its threshold and
    keeps them, so that one large picture would enlarge the process until its end."""
    with contextlib.suppress(OSError, AttributeError):  # another C library, without mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 8 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 32 << 20)


def trim() -> None:
    """Return what the process has freed to the system, pages between blocks in use included. Blocks smaller than the
    threshold above stay in the heap otherwise, as long as a later block is in use."""
    with contextlib.suppress(OSError, AttributeError):  # another C library, without malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
