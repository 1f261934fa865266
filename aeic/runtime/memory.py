"""One memory arena for all ONNX Runtime sessions of a process.

By default each session has an arena of its own. It keeps its first allocation, however large, and doubles with every
further one, so a process that has met one large picture keeps several times the memory of its largest step. The shared
arena grows by what is asked for.

It keeps the memory of a run for the next one: fresh memory is cleared by the system page by page, which is a tenth to a
fifth of the time of a large run. But it never joins two of its blocks, so runs that grow step by step would each
add theirs. Therefore :func:`prepare` empties the arena before a run that is larger than what it keeps, and a run with
:func:`shrinking` options, for sizes that come rarely, empties it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Lock

import onnxruntime

_SETTINGS = {"arena_extend_strategy": 1}
"""kSameAsRequested."""


class _Kept:
    """The bytes of the largest run since the arena was emptied."""

    def __init__(self) -> None:
        self.bytes = 0
        self.lock = Lock()


_kept = _Kept()


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of a session on ``threads`` CPU threads (0: all cores) whose inputs come in many sizes.

    It takes its memory from the shared arena, and logs errors only.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Memory patterns are kept for every input size and never shared; without them a third less memory, no slower.
    options.enable_mem_pattern = False
    share_arena(options)
    # Spinning gains a few per cent on an idle machine and slows down a busy one several times: the cores are needed for
    # entropy coding, and for reading and writing files.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def share_arena(options: onnxruntime.SessionOptions) -> None:
    """Let a session with these options take its CPU memory from the shared arena."""
    _register()
    options.add_session_config_entry("session.use_env_allocators", "1")


def prepare(needed: int, smallest: Callable[[onnxruntime.RunOptions], object]) -> None:
    """Call it before a run that takes about ``needed`` bytes and whose memory is to be kept.

    ``smallest`` runs a session of the arena on the smallest input that it takes, with the options that it is given:
    ONNX Runtime empties an arena only after a run.
    """
    with _kept.lock:
        if needed <= _kept.bytes:
            return
        grown, _kept.bytes = _kept.bytes > 0, needed
    if grown:
        smallest(_shrinking())


def shrinking() -> onnxruntime.RunOptions:
    """Options of a run after which the arena returns to the system what it does not use."""
    with _kept.lock:
        _kept.bytes = 0
    return _shrinking()


@cache
def _shrinking() -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


@cache
def _register() -> None:
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(_SETTINGS))
