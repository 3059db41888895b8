"""Logging never stands in the way of what is logged."""

from __future__ import annotations

import contextlib
import os

import structlog

from zeropull.telemetry.logs import configure_logging, get_logger


def test_a_reader_that_is_gone_loses_lines_but_stops_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    went_on = False
    # Closing flushes what the failed write has left in the buffer.
    with contextlib.suppress(BrokenPipeError), os.fdopen(write, "w") as stream:
        try:
            configure_logging("test", stream=stream)
            get_logger("x").info("nobody reads this")
            went_on = True
        finally:
            structlog.reset_defaults()
            structlog.contextvars.clear_contextvars()
    assert went_on
