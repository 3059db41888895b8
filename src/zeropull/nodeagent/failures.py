"""What an error means for a copy: its kind, whether trying again can help, what to tell people."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator
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
    """`retry`: the same may succeed a little later. `foreseen` False: an error that the code does
    not know, so that the same attempt most likely fails again. `with_log`: the end of the
    container's log tells more."""

    kind: FailureKind
    message: str
    retry: bool
    foreseen: bool = True
    with_log: bool = False


class StageFailed(Exception):
    """Carries a stage's failure to where it is decided what to do."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


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


def failure_of(error: BaseException, stage: Stage) -> Failure:
    """Classify what went wrong in a stage; what nobody foresaw is INTERNAL and tried again."""
    message = str(error)[:MESSAGE_LIMIT]
    if isinstance(error, TimeoutError) and stage is Stage.MODEL:
        return Failure(FailureKind.MODEL_TIMEOUT, message, retry=False)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(FailureKind.DISK_FULL, f"the node's disk is full: {message}", retry=True)
    for kind, failure, retry in _TABLES.get(stage, ()):
        if isinstance(error, kind):
            return Failure(failure, message, retry)
    if isinstance(error, ZeropullError):
        return Failure(FailureKind.INTERNAL, message, retry=True)
    foreseen = isinstance(error, OSError)
    text = f"{type(error).__name__}: {message}"
    if not foreseen:
        text = f"an unforeseen error in the {stage} stage: {text}"
    return Failure(FailureKind.INTERNAL, text, retry=True, foreseen=foreseen)


@contextlib.contextmanager
def failing_as(stage: Stage) -> Iterator[None]:
    """Whatever is raised within becomes a StageFailed of `stage`, what nobody foresaw as well.

    Libraries in Rust raise panics that are no Exception (pyo3's PanicException). A cancellation
    and what ends the process pass.
    """
    try:
        yield
    except (StageFailed, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise StageFailed(failure_of(first_of(error), stage)) from error


def first_of(error: BaseException) -> BaseException:
    """The first error of a group, the error itself otherwise."""
    return first_of(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
