"""Whose fault an error is, and what follows from it: the state of the stored frame, and the answer to its callers.

One table for all stages of the worker. docs/reference/cloud.md has the same table; a test compares them. Only a fault
of the frame, or of its stored bytes, puts the frame into quarantine. All others leave it in the queue. A frame that has
ended the whole service several times gets no error here: the queue itself gives it up (store/queue.py, `_lease`).
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from enum import StrEnum

from aeic.errors import BitstreamError, BundleError
from aeic_service.errors import ServiceError
from cloud_decoder.errors import (
    DecoderDied,
    DeviceOutOfMemory,
    DeviceUnavailable,
    HostUnavailable,
    ModelUnavailable,
    StoredDamage,
    StoreUnavailable,
    Undecodable,
)
from cloud_decoder.inference.subprocess_backend import GeneratorFailure
from cloud_decoder.store.records import FrameState

OUT_OF_MEMORY_SECONDS = 10.0
"""A frame for which the memory did not suffice waits this long in the queue."""
HOST_SECONDS = 1.0
"""Pause of a stage after a fault of the host, so that it does not retry at full speed."""


class Fault(StrEnum):
    """What is at fault."""

    FRAME = "frame"
    DEVICE = "device"
    STORE = "store"
    HOST = "host"


@dataclass(frozen=True)
class Outcome:
    """``state``: the stored frame's state afterwards; one that was decoded before stays done. ``answer``: the class
    that callers get; None: the error itself."""

    fault: Fault
    state: FrameState
    answer: type[ServiceError] | None


_FAILED, _KEPT = FrameState.FAILED, FrameState.RECEIVED

TABLE: dict[type[Exception], Outcome] = {
    BitstreamError: Outcome(Fault.FRAME, _FAILED, None),
    DeviceOutOfMemory: Outcome(Fault.HOST, _KEPT, HostUnavailable),
    DecoderDied: Outcome(Fault.FRAME, _FAILED, Undecodable),
    StoredDamage: Outcome(Fault.STORE, _FAILED, None),
    StoreUnavailable: Outcome(Fault.STORE, _KEPT, None),
    DeviceUnavailable: Outcome(Fault.DEVICE, _KEPT, None),
    ModelUnavailable: Outcome(Fault.DEVICE, _KEPT, None),
    BundleError: Outcome(Fault.HOST, _KEPT, HostUnavailable),
    OSError: Outcome(Fault.HOST, _KEPT, HostUnavailable),
    MemoryError: Outcome(Fault.HOST, _KEPT, HostUnavailable),
    Exception: Outcome(Fault.FRAME, _FAILED, Undecodable),
}
"""The first row whose class the error has applies. ``DeviceOutOfMemory`` and ``DecoderDied`` are those of a frame that
was on the device alone, the latter after the last attempt. Large pictures are decoded in tiles of a fixed size, so a
frame alone that does not fit into the memory is not too large: the machine has too little memory left."""


def outcome_of(error: Exception) -> Outcome:
    """The row of ``error``. An error that the decoder process reports counts as the built-in exception class of the
    same name; if there is none, as ``Exception``."""
    kind: type[BaseException] = type(error)
    if isinstance(error, GeneratorFailure):
        there = getattr(builtins, error.kind, None)
        kind = there if isinstance(there, type) else Exception
    return next((outcome for row, outcome in TABLE.items() if issubclass(kind, row)), TABLE[Exception])
