"""Errors as AWS names them, and how the tree of `zeropull.errors` translates into them.

Sources: "Common error types" of each service's API reference, and the error shapes of the models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zeropull.errors import (
    AccessDenied,
    AlreadyExists,
    Conflict,
    DiskFull,
    InvalidInput,
    NoCapacity,
    NotFound,
    Unavailable,
    ZeropullError,
)

VALIDATION = "ValidationException"


class ApiFault(ZeropullError):
    """An answer with an AWS error code. `members` are further members of the error's shape."""

    def __init__(
        self,
        code: str,
        message: str,
        status: int = 400,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.members = dict(members or {})

    @property
    def message(self) -> str:
        return self.reason


class SignatureError(ApiFault, AccessDenied):
    """A request that is not authenticated."""


# The codes of the query protocol where they differ from the JSON services'.
QUERY_CODES: Mapping[str, str] = {
    "InvalidSignatureException": "SignatureDoesNotMatch",
    "UnrecognizedClientException": "InvalidClientTokenId",
    "MissingAuthenticationTokenException": "MissingAuthenticationToken",
    "IncompleteSignatureException": "IncompleteSignature",
    "UnknownOperationException": "InvalidAction",
    "SerializationException": "MalformedInput",
    "ThrottlingException": "Throttling",
    "ValidationException": "ValidationError",
}

_Row = tuple[type[ZeropullError], str, int]
_COMMON: tuple[_Row, ...] = (
    (AccessDenied, "AccessDeniedException", 403),
    (Unavailable, "ServiceUnavailable", 503),
)
# First match wins. What is in no row is a fault of ours: InternalFailure, 500.
_TRANSLATION: Mapping[str, tuple[_Row, ...]] = {
    # SageMaker answers not-found, already-exists and wrong-state alike.
    "sagemaker": (
        (NotFound, VALIDATION, 400),
        (AlreadyExists, VALIDATION, 400),
        (Conflict, VALIDATION, 400),
        (InvalidInput, VALIDATION, 400),
        (NoCapacity, "ResourceLimitExceeded", 400),
        (DiskFull, "ResourceLimitExceeded", 400),
        *_COMMON,
    ),
    "application-autoscaling": (
        (NotFound, "ObjectNotFoundException", 400),
        (AlreadyExists, VALIDATION, 400),
        (Conflict, "ConcurrentUpdateException", 500),
        (InvalidInput, VALIDATION, 400),
        (NoCapacity, "LimitExceededException", 400),
        (DiskFull, "LimitExceededException", 400),
        *_COMMON,
    ),
    "cloudwatch": (
        (NotFound, "ResourceNotFound", 404),
        (InvalidInput, VALIDATION, 400),  # metric math; parameters have codes of their own
        (NoCapacity, "LimitExceededFault", 400),
        (DiskFull, "LimitExceededFault", 400),
        *_COMMON,
    ),
}


def fault_of(error: ZeropullError, service: str) -> ApiFault:
    """`error` as an answer of `service` (botocore's name of it)."""
    if isinstance(error, ApiFault):
        return error
    for kind, code, status in _TRANSLATION.get(service, _COMMON):
        if isinstance(error, kind):
            return ApiFault(code, error.reason, status)
    return internal_failure()


def throttled() -> ApiFault:
    """Every SDK tries again after a while."""
    return ApiFault("ThrottlingException", "Rate exceeded", 400)


def internal_failure() -> ApiFault:
    """Says nothing of the cause: that is in the log, beside the request ID."""
    return ApiFault("InternalFailure", "The request failed because of an internal error.", 500)
