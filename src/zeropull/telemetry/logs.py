"""Set up structlog once per process; every module asks for its logger by name."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO, cast

import structlog


def configure_logging(
    process: str, *, level: str = "info", stream: TextIO | None = None, **fields: Any
) -> None:
    """Log to `stream` (default stderr): JSON lines, or coloured lines on a terminal.

    `process` and `fields` (for example `instance_id`) stand on every line.
    """
    out = stream or sys.stderr
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if out.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Lossy(out))),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(process=process, **fields)


class _Lossy:
    """A stream whose reader may be gone, as behind `| head` or a closed terminal: lines get lost,
    but what was to be logged is done."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of the module `name`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=name)
    return logger
