"""Admission control: limits the pixels that are being decoded and schedules tenants fairly.

What a frame costs follows from the size in its header: :data:`BYTES_A_PIXEL` of memory, and time in proportion. The
pixels in work are therefore bounded to what the memory allows, and a tenant that asks for many large pictures does not
keep another one waiting for all of them.
"""

from __future__ import annotations

from aeic.bitstream import Frame
from aeic_service.budgets import Budget, FairQueue, Place
from aeic_service.errors import Draining, Overloaded
from cloud_decoder.errors import Expired
from cloud_decoder.metrics import Metrics

BYTES_A_PIXEL = 24
"""What decoding takes at its peak: y_hat and the entropy model's tensors, the picture and its file."""


class Admission:
    """At most ``pixels`` of pictures are decoded for callers at once, and ``callers`` of them wait or are served.

    One caller too many gets 429. Waiting ends with 504 (``/v1/decode``) or 202 (pictures of stored frames). Frames that
    are decoded on arrival are limited by the Pipeline instead.

    ``shared``: there are several tenants, and none may hold more than its part.
    """

    def __init__(self, pixels: int, callers: int, metrics: Metrics, *, shared: bool) -> None:
        self.pixels = Budget(pixels, shared=shared)
        self.callers = Budget(callers, shared=shared)
        self._queue = FairQueue(self.pixels, self.callers)
        self._metrics = metrics

    async def enter(self, tenant: str, frame: Frame, timeout: float) -> Place:
        """:meth:`of_pixels` for the size in the frame's header."""
        return await self.of_pixels(tenant, frame.width * frame.height, timeout)

    async def of_pixels(self, tenant: str, pixels: int, timeout: float) -> Place:
        """A place for one picture, to be left when its file is made.

        ``Overloaded`` where too many callers wait, ``Expired`` after ``timeout`` seconds, ``Draining`` when the service
        stops.
        """
        try:
            return await self._queue.enter(tenant, pixels, timeout)
        except TimeoutError:
            self._metrics.decodes.labels("expired").inc()
            raise Expired(f"not decoded within {timeout:g} s: ask again, or allow more time", retry_after=1.0) from None
        except Overloaded:
            self._metrics.sheds.labels("queue_full").inc()
            raise

    def close(self) -> None:
        """Answer all who wait, and all who come later, with ``Draining``."""
        self._queue.close(Draining())
