"""What turns frames into pictures, as HTTP and gRPC see it.

Two implementations: :class:`cloud_decoder.worker.worker.Worker` decodes in this process, and
:class:`cloud_decoder.front_end.queue_backend.QueueBackend` leaves the decoding to the workers of a fleet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from aeic.bitstream import Frame
from aeic.errors import Damaged, TooLarge
from aeic.latent_codec import least_payload_bytes
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.store.records import DEMAND_PRIORITY, StoredFrame
from cloud_decoder.tiling import Picture


@dataclass(frozen=True)
class Decoded:
    """A finished picture (H, W, 3) uint8, the digest of its latents, and the seconds of each stage."""

    picture: Picture
    latents_digest: str
    timings: dict[str, float]


class DecodeBackend(Protocol):
    """Use it from one event loop: ``await start()``, any number of calls, ``await stop()``."""

    @property
    def device(self) -> str:
        """As devices.py names them (``onnx``, ``fastest``, ``cuda``); ``none`` where other processes decode."""
        ...

    @property
    def runtime(self) -> str:
        """The library that synthesises and what it multiplies in; final after ``start()``."""
        ...

    @property
    def problem(self) -> str:
        """Why nothing can be decoded now; empty while it can. Readiness reports it."""
        ...

    @property
    def failure(self) -> str:
        """Why only a restart of the process helps; empty while the backend works or repairs itself."""
        ...

    @property
    def warnings(self) -> list[str]:
        """What an operator should know although the backend works; empty where all is well. Readiness shows it."""
        ...

    @property
    def draining(self) -> bool:
        """Whether :meth:`stop` was called."""
        ...

    @property
    def waiting(self) -> dict[str, int]:
        """Pictures that wait in this process, by stage: ``entropy`` and ``device``."""
        ...

    async def start(self) -> None:
        """Get ready to decode."""
        ...

    async def stop(self) -> None:
        """Finish the work in progress, return the rest to the queue, and answer every caller."""
        ...

    def wake(self) -> None:
        """There are new frames in the store."""
        ...

    def check(self, data: bytes) -> Frame:
        """The header of a bitstream. Raises what :func:`check_frame` raises."""
        ...

    async def decode(self, data: bytes, *, timeout: float, priority: int = DEMAND_PRIORITY) -> Decoded:
        """Decode a bitstream that is not stored, within ``timeout`` seconds.

        Raises ``BitstreamError`` or ``Undecodable`` with the reason, ``Overloaded``, ``Expired``, ``Draining`` or
        ``DeviceUnavailable``. Cancelling the call takes its work out of the queue.
        """
        ...

    async def decode_stored(self, row: StoredFrame, *, timeout: float) -> Decoded | None:
        """Decode a stored frame ahead of those that no caller waits for. Its picture also goes to the cache.

        None where another process decodes it: the picture will be in the cache. ``Expired`` after ``timeout`` seconds;
        the decoding goes on. Otherwise raises as :meth:`decode` does.
        """
        ...

    async def encode(self, picture: Picture, format: str, width: int | None = None) -> bytes:
        """:func:`cloud_decoder.images.formats.encode` on a thread, with its time in the metrics."""
        ...


def check_frame(data: bytes, model_pool: ModelPool, max_pixels: int) -> Frame:
    """The header of a bitstream that this cloud can decode.

    ``BitstreamError`` for what is no frame, ``TooLarge`` above ``max_pixels``, ``WrongModel`` for an unknown bundle,
    ``Damaged`` for a rate point that the bundle does not have or a payload that is too short for its size.
    """
    frame = Frame.parse(data)
    if frame.width * frame.height > max_pixels:
        raise TooLarge(f"{frame.width}x{frame.height} is over this cloud's {max_pixels} pixels: send it smaller")
    bundle = model_pool.bundle(frame.fingerprint)
    if frame.rate >= len(bundle.rates):
        raise Damaged(f"the frame names rate point {frame.rate}, which its bundle does not have: fetch it again")
    if len(frame.payload) < (least := least_payload_bytes(bundle, frame)):
        raise Damaged(
            f"a frame of {frame.width}x{frame.height} has {least} bytes or more, this one {len(frame.payload)}:"
            " fetch it again in full"
        )
    return frame
