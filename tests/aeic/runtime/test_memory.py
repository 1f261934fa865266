"""The shared arena holds what its largest run needs, not the sum over all runs."""

from __future__ import annotations

from typing import Any

import pytest

from aeic.runtime import memory


@pytest.fixture
def emptied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of the runs that emptied the arena, in a process that has run nothing yet."""
    monkeypatch.setattr(memory, "_kept", memory._Kept())
    return []


def test_only_a_larger_run_empties_the_arena_first(emptied: list[Any]) -> None:
    for needed in (100, 100, 40):
        memory.prepare(needed, emptied.append)
    assert not emptied
    memory.prepare(101, emptied.append)
    assert len(emptied) == 1
    assert emptied[0].get_run_config_entry("memory.enable_memory_arena_shrinkage") == "cpu:0"
    memory.prepare(101, emptied.append)
    assert len(emptied) == 1


def test_an_empty_arena_is_not_emptied_again(emptied: list[Any]) -> None:
    memory.prepare(100, emptied.append)
    memory.shrinking()
    memory.prepare(200, emptied.append)
    assert not emptied
