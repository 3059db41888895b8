"""A copy answers /ping, or it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from zeropull.reconcilers.probing import answers_ping


@asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[int]:
    """Sends `answer` to whoever asks; nothing at all when it is empty."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"GET /ping HTTP/1.1\r\n")
        if answer:
            writer.write(answer)
            await writer.drain()
        else:
            await reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "is_there"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"nonsense\r\n", False),
        (b"x" * 200_000, False),
    ],
)
async def test_only_a_good_answer_counts(answer: bytes, is_there: bool) -> None:
    async with server(answer) as port:
        assert await answers_ping("127.0.0.1", port) is is_there


async def test_a_copy_that_says_nothing_is_not_waited_for_long() -> None:
    async with server(b"") as port:
        assert not await answers_ping("127.0.0.1", port, timeout_s=0.05)


async def test_a_copy_that_is_not_there_does_not_answer() -> None:
    async with server(b"") as port:
        pass
    assert not await answers_ping("127.0.0.1", port)
