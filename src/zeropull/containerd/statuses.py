"""gRPC statuses to zeropull's errors and back: the one table of each."""

from __future__ import annotations

import grpc

from zeropull.errors import (
    AccessDenied,
    AlreadyExists,
    Conflict,
    DiskFull,
    IntegrityError,
    InvalidInput,
    NotFound,
    Unavailable,
    ZeropullError,
)

_ERRORS: dict[grpc.StatusCode, type[ZeropullError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.OUT_OF_RANGE: InvalidInput,
    grpc.StatusCode.UNIMPLEMENTED: InvalidInput,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.DATA_LOSS: IntegrityError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Unavailable,
}

_STATUSES: tuple[tuple[type[ZeropullError], grpc.StatusCode], ...] = (
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (Conflict, grpc.StatusCode.FAILED_PRECONDITION),
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (AccessDenied, grpc.StatusCode.PERMISSION_DENIED),
    (IntegrityError, grpc.StatusCode.DATA_LOSS),
    (DiskFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
)


def error_of(code: grpc.StatusCode, details: str | None, method: str) -> ZeropullError:
    """The error that a caller of `method` acts on. A full disk reaches us as a text only."""
    message = f"containerd, {method.rpartition('.')[2]}: {details or code.name}"
    if details and "no space left on device" in details:
        return DiskFull(message)
    return _ERRORS.get(code, Unavailable)(message)


def status_of(error: ZeropullError) -> grpc.StatusCode:
    """The status with which a service of ours answers this error."""
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return status
    return grpc.StatusCode.UNKNOWN
