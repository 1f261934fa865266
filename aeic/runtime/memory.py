"""One memory arena for all ONNX Runtime sessions of a process.

By default each session has an arena of its own. It keeps its first allocation, however large, and doubles with every
further one, so a process that has met one large picture keeps several times the memory of its largest step. The shared
arena grows by what is asked for, and a run with :func:`shrinking` options returns all that is free.
"""

from __future__ import annotations

from functools import cache

import onnxruntime

_SETTINGS = {"arena_extend_strategy": 1}
"""kSameAsRequested."""


def share_arena(options: onnxruntime.SessionOptions) -> None:
    """Let a session with these options take its CPU memory from the shared arena."""
    _register()
    options.add_session_config_entry("session.use_env_allocators", "1")


@cache
def shrinking() -> onnxruntime.RunOptions:
    """Options of a run after which the arena returns to the system what it does not use."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


@cache
def _register() -> None:
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(_SETTINGS))
