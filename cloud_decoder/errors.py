"""What can go wrong in the cloud besides :mod:`aeic.errors` and :mod:`aeic_service.errors`.

::

    ServiceError                 the service cannot do it now, or not at all
         +- Expired              its deadline passed in wait   HTTP 504, DEADLINE_EXCEEDED
         +- StoreUnavailable     the store cannot write        HTTP 503, UNAVAILABLE
         +- NotAllowed           no or a wrong token           HTTP 401, UNAUTHENTICATED
         +- DeletionForbidden    clients may delete nothing    HTTP 403, PERMISSION_DENIED
         +- RequestsForbidden    no box may be asked anything  HTTP 403, PERMISSION_DENIED
         +- NoEdge               no edge is configured         HTTP 404, NOT_FOUND
         +- UnknownRequest       no such request here          HTTP 404, NOT_FOUND
         +- OtherForm            a file, not a frame, or vice  HTTP 409, FAILED_PRECONDITION
         +- NotAcceptable        Accept excludes all pictures  HTTP 406, INVALID_ARGUMENT
         +- Gone                 pruned or deleted             HTTP 410, NOT_FOUND
         +- BudgetSpent          the hour of a source is spent HTTP 429, RESOURCE_EXHAUSTED
         +- StoredDamage         its stored bytes have changed HTTP 500, INTERNAL
         +- Undecodable          quarantined, with its reason  HTTP 422, FAILED_PRECONDITION
         +- DeviceOutOfMemory    a batch too large             HTTP 500, INTERNAL
         +- DecoderDied          its process was lost          HTTP 503, UNAVAILABLE
         +- DeviceUnavailable    no generator can be started   HTTP 503, UNAVAILABLE
         +- HostUnavailable      no files, memory or disk left HTTP 503, UNAVAILABLE
         +- ModelUnavailable     its bundle cannot be loaded   HTTP 503, UNAVAILABLE
"""

from __future__ import annotations

from aeic_service.errors import ServiceError


class Expired(ServiceError):
    """The work was not done before its deadline, so it never reached the device."""

    http_status = 504


class StoreUnavailable(ServiceError):
    """The store cannot commit: a full or broken disk, or a database that is down. Nothing was acknowledged."""

    http_status = 503


class NotAllowed(ServiceError):
    """There is no token, or it is not known."""

    http_status = 401


class DeletionForbidden(ServiceError):
    """The settings let no client delete frames."""

    http_status = 403


class RequestsForbidden(ServiceError):
    """The settings let no client ask a box for more of a picture."""

    http_status = 403


class BudgetSpent(ServiceError):
    """A source may be asked for no more at present. Unlike a busy service, this lasts for minutes to an hour."""

    http_status = 429


class NoEdge(ServiceError):
    """No edge is configured that would encode a picture for this tenant."""

    http_status = 404


class UnknownRequest(ServiceError):
    """There is no request of that id about the frame, or it belongs to another tenant."""

    http_status = 404


class NotAcceptable(ServiceError):
    """The ``Accept`` header excludes every format in which there are pictures."""

    http_status = 406


class Gone(ServiceError):
    """The frame was pruned by retention or deleted by a client."""

    http_status = 410


class OtherForm(ServiceError):
    """A frame was asked for, and the answer of that id is a picture file; or the other way round."""

    http_status = 409


class StoredDamage(ServiceError):
    """The stored bitstream is not the one that arrived: the disk or the database has changed it."""


class Undecodable(ServiceError):
    """A frame in quarantine; the message is the reason."""

    http_status = 422


class DeviceOutOfMemory(ServiceError):
    """The device does not have the memory for this batch. The worker splits it; a batch of one is tried again later."""


class DecoderDied(ServiceError):
    """The generator's process was lost with a batch in it. The worker starts another and tries again."""

    http_status = 503


class DeviceUnavailable(ServiceError):
    """The generator cannot be started. No frame is the cause; readiness reports it."""

    http_status = 503


class HostUnavailable(ServiceError):
    """This machine lacks files, memory or disk space, or a file cannot be read. The frame stays in the store."""

    http_status = 503


class ModelUnavailable(ServiceError):
    """A known bundle cannot be loaded now. Its frames stay in the store."""

    http_status = 503
