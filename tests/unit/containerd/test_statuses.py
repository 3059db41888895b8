from __future__ import annotations

import grpc
import pytest

from zeropull.containerd.statuses import error_of, status_of
from zeropull.errors import (
    AccessDenied,
    AlreadyExists,
    Conflict,
    DiskFull,
    InvalidInput,
    NotFound,
    Unavailable,
    ZeropullError,
)


@pytest.mark.parametrize(
    "kind", [NotFound, AlreadyExists, Conflict, InvalidInput, AccessDenied, Unavailable]
)
def test_an_error_is_the_same_kind_on_the_other_side(kind: type[ZeropullError]) -> None:
    assert type(error_of(status_of(kind("x")), "x", "a.B/C")) is kind


def test_a_full_disk_is_known_by_its_text() -> None:
    error = error_of(
        grpc.StatusCode.UNKNOWN, "write /x: no space left on device", "a.Content/Write"
    )
    assert isinstance(error, DiskFull)
    assert "Content/Write" in str(error)


def test_an_unknown_status_may_be_tried_again() -> None:
    assert isinstance(error_of(grpc.StatusCode.INTERNAL, None, "a.B/C"), Unavailable)
