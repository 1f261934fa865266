"""The gRPC status of each error."""

from __future__ import annotations

import grpc

from aeic.errors import AeicError, BitstreamError, WrongModel

_OF_HTTP_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    406: grpc.StatusCode.INVALID_ARGUMENT,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    410: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def grpc_status(error: AeicError) -> grpc.StatusCode:
    """The gRPC status that corresponds to the error's HTTP status; INVALID_ARGUMENT for an undecodable bitstream."""
    if isinstance(error, BitstreamError) and not isinstance(error, WrongModel):
        return grpc.StatusCode.INVALID_ARGUMENT
    return _OF_HTTP_STATUS.get(error.http_status, grpc.StatusCode.INTERNAL)
