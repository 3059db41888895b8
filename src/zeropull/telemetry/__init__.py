"""Structured logging: a constant message plus fields, JSON when not on a terminal."""

from zeropull.telemetry.logs import configure_logging, get_logger

__all__ = ["configure_logging", "get_logger"]
