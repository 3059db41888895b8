"""Set up structlog once per process; every module asks for its logger by name."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

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
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(process=process, **fields)


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of the module `name`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=name)
    return logger
