"""GET /ping on port 8080: one attempt, and how the attempts follow each other.

SageMaker: 200 is healthy, the body is ignored, an attempt may take two seconds.
"""

from __future__ import annotations

import asyncio

PORT = 8080
ATTEMPT_TIMEOUT_S = 2.0
FAILURES_UNTIL_UNHEALTHY = 3
_FIRST_S, _FIRST_FOR_S = 0.1, 10.0
_WAITING_S = 1.0
_WATCHING_S = 2.0
_MAX_STATUS_LINE = 4096


def ping_interval_s(*, healthy: bool, since_start_s: float) -> float:
    """Seconds until the next attempt: quick while a container is expected to come up."""
    if healthy:
        return _WATCHING_S
    return _FIRST_S if since_start_s < _FIRST_FOR_S else _WAITING_S


async def ping(host: str, port: int = PORT, timeout_s: float = ATTEMPT_TIMEOUT_S) -> str:
    """ "" when /ping answered 200, else what happened in a few words."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port, limit=_MAX_STATUS_LINE)
            writer.write(
                f"GET /ping HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: zeropull\r\n"
                "Accept: */*\r\nConnection: close\r\n\r\n".encode()
            )
            await writer.drain()
            line = await reader.readline()
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or "no HTTP answer"
    finally:
        if writer is not None:
            writer.transport.abort()
    return _judge(line)


def _judge(status_line: bytes) -> str:
    parts = status_line.split(None, 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        return "connection closed without an answer" if not status_line else "no HTTP answer"
    return "" if parts[1] == b"200" else f"status {parts[1].decode()}"
