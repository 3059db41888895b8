"""What an error means for a copy: its kind, whether trying again can help, what to tell people."""

from __future__ import annotations

from dataclasses import dataclass

from zeropull.controlapi.messages import FailureKind
from zeropull.errors import (
    AccessDenied,
    ArtifactError,
    ContainerError,
    DiskFull,
    ImageError,
    IntegrityError,
    InvalidInput,
    NoCapacity,
    NotFound,
    PlatformError,
    Unavailable,
    ZeropullError,
)
from zeropull.resources.stages import Stage

MESSAGE_LIMIT = 3000


@dataclass(frozen=True, slots=True)
class Failure:
    """`retry`: the same may succeed a little later."""

    kind: FailureKind
    message: str
    retry: bool


_IMAGE: tuple[tuple[type[ZeropullError], FailureKind, bool], ...] = (
    (NotFound, FailureKind.IMAGE_NOT_FOUND, False),
    (AccessDenied, FailureKind.REGISTRY_DENIED, False),
    (IntegrityError, FailureKind.IMAGE_INTEGRITY, False),
    (PlatformError, FailureKind.IMAGE_PLATFORM, False),
    (ImageError, FailureKind.IMAGE_INVALID, False),
    (DiskFull, FailureKind.DISK_FULL, True),
    (Unavailable, FailureKind.REGISTRY_UNREACHABLE, True),
    (InvalidInput, FailureKind.IMAGE_INVALID, False),
)
_MODEL: tuple[tuple[type[ZeropullError], FailureKind, bool], ...] = (
    (NotFound, FailureKind.MODEL_NOT_FOUND, False),
    (AccessDenied, FailureKind.MODEL_UNREACHABLE, False),
    (ArtifactError, FailureKind.MODEL_INVALID, False),
    (IntegrityError, FailureKind.MODEL_INVALID, True),
    (DiskFull, FailureKind.DISK_FULL, True),
    (Unavailable, FailureKind.MODEL_UNREACHABLE, True),
    (InvalidInput, FailureKind.MODEL_INVALID, False),
)
_START: tuple[tuple[type[ZeropullError], FailureKind, bool], ...] = (
    (ImageError, FailureKind.IMAGE_INVALID, False),
    (NoCapacity, FailureKind.ACCELERATOR, False),
    (NotFound, FailureKind.CONTAINER_START, True),
    (ContainerError, FailureKind.CONTAINER_START, True),
    (DiskFull, FailureKind.DISK_FULL, True),
)
_TABLES = {Stage.IMAGE: _IMAGE, Stage.MODEL: _MODEL, Stage.START: _START}


def failure_of(error: Exception, stage: Stage) -> Failure:
    """Classify what went wrong in a stage; what nobody foresaw is INTERNAL and tried again."""
    message = str(error)[:MESSAGE_LIMIT]
    if isinstance(error, TimeoutError) and stage is Stage.MODEL:
        return Failure(FailureKind.MODEL_TIMEOUT, message, retry=False)
    if isinstance(error, OSError) and error.errno == 28:
        return Failure(FailureKind.DISK_FULL, f"the node's disk is full: {message}", retry=True)
    for kind, failure, retry in _TABLES.get(stage, ()):
        if isinstance(error, kind):
            return Failure(failure, message, retry)
    text = message if isinstance(error, ZeropullError) else f"{type(error).__name__}: {message}"
    return Failure(FailureKind.INTERNAL, text, retry=True)
