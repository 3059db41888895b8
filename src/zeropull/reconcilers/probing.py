"""Asks a copy itself whether it is there: GET /ping, as SageMaker's containers answer it."""

from __future__ import annotations

import asyncio
import contextlib

TIMEOUT_S = 2.0


async def answers_ping(host: str, port: int, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether it answers with 200 within the time."""
    request = f"GET /ping HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request.encode())
                await writer.drain()
                status = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, ValueError):
        return False
    return status.split(b" ")[1:2] == [b"200"]
