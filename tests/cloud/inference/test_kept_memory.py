"""The generator keeps the memory of a call for the next one, until no call comes for a while."""

from __future__ import annotations

import math
import resource
import socket
import threading

import numpy as np
import psutil
import pytest

from aeic.bundle import default_bundle_path
from cloud_decoder.inference import onnx_backend, subprocess_child
from cloud_decoder.inference.backend import GeneratorBackend
from cloud_decoder.inference.onnx_backend import OnnxGenerator
from cloud_decoder.inference.subprocess_backend import Control, SharedBuffer
from cloud_decoder.tiling import WHOLE_PIXELS
from tests.support.roots import ROOT

Y_HAT = np.zeros((1, 128, 20, 24), np.float32)
"""A picture of 768x640: some of its tensors are so large that malloc would return them to the system."""


def fresh_mib(generator: OnnxGenerator) -> float:
    """Memory that the system has to clear for a call."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    generator(Y_HAT)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20


def test_the_second_call_needs_no_fresh_memory_and_release_returns_it() -> None:
    generator = OnnxGenerator(default_bundle_path(), 1)
    first = fresh_mib(generator)
    assert fresh_mib(generator) < 0.3 * first
    held = psutil.Process().memory_info().rss
    generator.release()
    assert held - psutil.Process().memory_info().rss > 50 << 20


def test_release_returns_memory_that_lies_below_blocks_in_use() -> None:
    """The C library keeps freed memory in its heap while a later block is in use."""
    np.ones(31 << 20, np.uint8)  # once freed, glibc takes all smaller blocks from its heap
    generator = OnnxGenerator(default_bundle_path(), 1)
    fresh_mib(generator)
    later = [bytes(700) for _ in range(30_000)]
    held = psutil.Process().memory_info().rss
    generator.release()
    assert held - psutil.Process().memory_info().rss > 50 << 20
    assert later


def test_an_idle_child_outlives_an_error_of_the_release(caplog: pytest.LogCaptureFixture) -> None:
    class Full(GeneratorBackend):
        def release(self) -> None:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 4096")

    child = subprocess_child.Child(SharedBuffer(), SharedBuffer())
    child._generator = Full()  # type: ignore[abstract]  # nothing else is called
    child.release()
    assert "could not return its memory" in caplog.text


def test_an_idle_child_releases_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess_child, "IDLE_SECONDS", 0.02)
    ours, theirs = socket.socketpair()
    line, far = Control(ours), Control(theirs)
    released = threading.Semaphore(0)

    def serve() -> None:
        subprocess_child._serve(far, lambda message: message, released.release)

    thread = threading.Thread(target=serve)
    thread.start()
    assert released.acquire(timeout=10)
    line.send({"shape": [1]})
    assert line.receive(10) == {"shape": [1]}
    assert released.acquire(timeout=10)
    assert not released.acquire(timeout=0.2)
    line.close()
    thread.join(10)
    assert not thread.is_alive()
    far.close()


def test_the_guide_states_the_memory_of_the_largest_tile() -> None:
    tile = WHOLE_PIXELS * onnx_backend._PIXEL_BYTES
    assert f"its largest tile, up to {math.ceil(tile / 1e9)} GB" in (ROOT / "docs" / "how-to" / "cloud.md").read_text()
