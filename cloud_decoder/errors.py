"""What can go wrong in the cloud besides :mod:`aeic.errors`; the same tree, one branch more.

::

    AeicError
     +- ServiceError             the service cannot do it now, or not at all
         +- Overloaded           the queue is full             HTTP 429, RESOURCE_EXHAUSTED
         +- Expired              its deadline passed waiting   HTTP 504, DEADLINE_EXCEEDED
         +- Draining             the service is stopping       HTTP 503, UNAVAILABLE
         +- StoreUnavailable     the store cannot write        HTTP 503, UNAVAILABLE
         +- NotAllowed           no or a wrong token           HTTP 401, UNAUTHENTICATED
         +- UnknownFrame         no such frame here            HTTP 404, NOT_FOUND
         +- Gone                 pruned by retention           HTTP 410, NOT_FOUND
         +- BadRequest           an argument out of its range  HTTP 400, INVALID_ARGUMENT
         +- BodyTooLarge         more bytes than allowed       HTTP 413, RESOURCE_EXHAUSTED
         +- Undecodable          quarantined, with its reason  HTTP 422, FAILED_PRECONDITION
         +- DeviceOutOfMemory    a batch too large             HTTP 500, INTERNAL
         +- DecoderDied          its process was lost          HTTP 503, UNAVAILABLE
         +- DeviceUnavailable    no generator can be had       HTTP 503, UNAVAILABLE
         +- ModelUnavailable     its bundle cannot be loaded   HTTP 503, UNAVAILABLE
"""

from __future__ import annotations

from aeic.errors import AeicError


class ServiceError(AeicError):
    """Root of the cloud's own errors. ``retry_after`` is in seconds, where trying again can help."""

    http_status = 500

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(ServiceError):
    """Too much is waiting already."""

    http_status = 429


class Expired(ServiceError):
    """The work was not done before its deadline, so it never reached the device."""

    http_status = 504


class Draining(ServiceError):
    """The service is stopping and takes nothing new."""

    http_status = 503


class StoreUnavailable(ServiceError):
    """The store cannot commit: a full or broken disk, or a database that is down. Nothing was acknowledged."""

    http_status = 503


class NotAllowed(ServiceError):
    """No token, or one that is not known."""

    http_status = 401


class UnknownFrame(ServiceError):
    """No frame of that id, or not this tenant's."""

    http_status = 404


class Gone(ServiceError):
    """The frame was here; retention has removed it."""

    http_status = 410


class BadRequest(ServiceError):
    """An argument that makes no sense."""

    http_status = 400


class BodyTooLarge(ServiceError):
    """A request body above the limit."""

    http_status = 413


class Undecodable(ServiceError):
    """A frame in quarantine: it failed alone, and the reason is the message."""

    http_status = 422


class DeviceOutOfMemory(ServiceError):
    """The device has not the memory for this batch. The worker splits it; a batch of one goes to quarantine."""


class DecoderDied(ServiceError):
    """The generator's process was lost with a batch in it. The worker starts another and tries again."""

    http_status = 503


class DeviceUnavailable(ServiceError):
    """The generator cannot be started: no fault of any frame. Readiness says so."""

    http_status = 503


class ModelUnavailable(ServiceError):
    """A known bundle cannot be loaded now: no fault of any frame, which stays in the store."""

    http_status = 503
