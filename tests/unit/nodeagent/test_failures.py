"""What an error means for a copy."""

from __future__ import annotations

import pytest

from zeropull.controlapi.messages import FailureKind
from zeropull.errors import DiskFull, ImageError, IntegrityError, PlatformError, Unavailable
from zeropull.nodeagent.failures import failure_of
from zeropull.resources.stages import Stage


@pytest.mark.parametrize(
    ("error", "kind", "retry"),
    [
        (PlatformError("for another machine"), FailureKind.IMAGE_PLATFORM, False),
        (ImageError("not built for humans"), FailureKind.IMAGE_INVALID, False),
        (IntegrityError("wrong digest"), FailureKind.IMAGE_INTEGRITY, False),
        (DiskFull("no room"), FailureKind.DISK_FULL, True),
        (Unavailable("away"), FailureKind.REGISTRY_UNREACHABLE, True),
        (OSError(28, "No space left on device"), FailureKind.DISK_FULL, True),
        (RuntimeError("unforeseen"), FailureKind.INTERNAL, True),
    ],
)
def test_an_images_error_is_told_by_its_type(
    error: Exception, kind: FailureKind, retry: bool
) -> None:
    failure = failure_of(error, Stage.IMAGE)
    assert (failure.kind, failure.retry) == (kind, retry)
    assert str(error.args[-1]) in failure.message
