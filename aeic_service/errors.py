"""Errors of both services; they extend the tree of :mod:`aeic.errors`.

::

    AeicError
     +- ServiceError             the service cannot do it now, or not at all
         +- BadRequest           the request makes no sense        HTTP 400
         |   +- InvalidParameter a path, query or header value     HTTP 400
         |   +- UnknownParameter a query parameter that is not one HTTP 400
         +- UnknownFrame         no such frame here                HTTP 404
         +- SlowBody             the body did not arrive in time   HTTP 408
         +- BodyTooLarge         more bytes than allowed           HTTP 413
         +- UnsupportedBody      a form, or a compressed body      HTTP 415
         +- Overloaded           no room now                       HTTP 429
         +- ClientGone           the client hung up                HTTP 499, in metrics only
         +- Draining             the service is stopping           HTTP 503

:mod:`aeic_service.http.problems` writes them as problem+json; cloud_decoder/grpc_api/status.py maps them to gRPC.
"""

from __future__ import annotations

from aeic.errors import AeicError


class ServiceError(AeicError):
    """Root of the services' own errors. ``retry_after`` is in seconds, where trying again can help."""

    http_status = 500

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BadRequest(ServiceError):
    """A request that makes no sense."""

    http_status = 400


class InvalidParameter(BadRequest):
    """A value in the path, the query or a header that is malformed or out of its range."""


class UnknownParameter(BadRequest):
    """A query parameter that the route does not have."""


class UnknownFrame(ServiceError):
    """The service has no frame of that id, or it belongs to another tenant."""

    http_status = 404


class SlowBody(ServiceError):
    """The request body did not arrive in time."""

    http_status = 408


class BodyTooLarge(ServiceError):
    """A request body above the limit."""

    http_status = 413


class UnsupportedBody(ServiceError):
    """A request body that is wrapped: a form, or compressed."""

    http_status = 415


class Overloaded(ServiceError):
    """Too much is waiting or being received already."""

    http_status = 429


class ClientGone(ServiceError):
    """The client disconnected before the response. 499 is nginx's code; it appears only in metrics and logs."""

    http_status = 499


class Draining(ServiceError):
    """The service is stopping and takes nothing new."""

    http_status = 503

    def __init__(
        self, message: str = "the service is stopping: try again in a moment", *, retry_after: float | None = 5.0
    ) -> None:
        super().__init__(message, retry_after=retry_after)
