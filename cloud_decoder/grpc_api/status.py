"""The gRPC status of an error of the tree; its HTTP status is in the tree itself."""

from __future__ import annotations

import grpc

from aeic.errors import AeicError, BitstreamError, WrongModel

_GRPC = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    410: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def grpc_status(error: AeicError) -> grpc.StatusCode:
    """The gRPC code of an error of the tree."""
    if isinstance(error, BitstreamError) and not isinstance(error, WrongModel):
        return grpc.StatusCode.INVALID_ARGUMENT
    return _GRPC.get(error.http_status, grpc.StatusCode.INTERNAL)
