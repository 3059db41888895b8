"""How requests ended, counted by status and error code."""

from __future__ import annotations

from typing import NamedTuple


class Result(NamedTuple):
    """`code` is the AWS error code, "" for an answer of the model."""

    status: int
    code: str


SERVED = Result(200, "")
CLIENT_GONE = Result(499, "ClientGone")
