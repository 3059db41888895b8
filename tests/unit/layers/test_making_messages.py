"""Errors of a layer process, as its parent raises them."""

from __future__ import annotations

import pytest

from zeropull.errors import DiskFull, ImageError, IntegrityError, ZeropullError
from zeropull.layers.making_messages import Failed, decode_answer, encode_message


@pytest.mark.parametrize(
    "error",
    [
        ImageError("absurd"),
        DiskFull("no room"),
        IntegrityError("damaged"),
        OSError(5, "I/O error"),
        OSError(5, "I/O error", "/some/file"),
    ],
    ids=["image", "disk", "integrity", "no-file", "file"],
)
def test_an_error_is_the_same_on_the_other_side(error: ZeropullError | OSError) -> None:
    answer = decode_answer(encode_message(Failed.of(error)))
    assert isinstance(answer, Failed)
    told = answer.error()
    assert type(told) is type(error)
    assert str(told) == str(error)
    assert told.args == error.args
