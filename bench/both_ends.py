"""Requests with an ID each, counted at both ends: none lost, none doubled, each its own answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

from bench.contenders import COUNTED, Started, request_headers
from bench.upstream import CHAT, Place

CONCURRENCIES = (1, 32, 512)
WAIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Count:
    """`arrived` at the upstream and `answered` with their own ID at the client."""

    concurrency: int
    sent: int
    answered: int
    arrived: int
    lost: int
    doubled: int

    def __str__(self) -> str:
        return (
            f"counted at both ends, c={self.concurrency}: {self.sent} sent, {self.answered} "
            f"answered, {self.arrived} arrived, {self.lost} lost, {self.doubled} doubled"
        )


def count_both_ends(place: Place, started: Started, requests: int) -> list[Count]:
    """That many at each concurrency (a tenth of them at 1)."""
    return [
        _count(place, started, concurrency, requests // 10 if concurrency == 1 else requests)
        for concurrency in CONCURRENCIES
    ]


def _count(place: Place, started: Started, concurrency: int, requests: int) -> Count:
    before = len(place.ids.read_bytes().splitlines()) if place.ids.exists() else 0
    answered = asyncio.run(_send_all(started, concurrency, requests))
    time.sleep(0.2)  # nginx writes its line after the answer
    arrived = Counter(place.ids.read_bytes().splitlines()[before:])
    return Count(
        concurrency,
        sent=requests,
        answered=answered,
        arrived=arrived.total(),
        lost=requests - min(answered, len(arrived)),
        doubled=arrived.total() - len(arrived),
    )


async def _send_all(started: Started, concurrency: int, requests: int) -> int:
    """How many were answered with status 200 and their own ID."""
    path = f"/endpoints/{COUNTED}/invocations"
    headers = request_headers(started, path, CHAT)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{started.port}\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in headers.items()
    )
    ids = iter(range(requests))
    run = time.monotonic_ns()

    async def one_client() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", started.port)
        answered = 0
        for number in ids:
            name = b"%d-%d" % (run, number)
            writer.write(
                b"%bX-Amzn-SageMaker-Custom-Attributes: %b\r\nContent-Length: %d\r\n\r\n%b"
                % (head.encode(), name, len(CHAT), CHAT)
            )
            status, body = await _answer(reader)
            answered += status == 200 and body == name
        writer.close()
        return answered

    async with asyncio.timeout(WAIT_S):
        return sum(await asyncio.gather(*(one_client() for _ in range(concurrency))))


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(head[9:12]), await reader.readexactly(int(value))
    return int(head[9:12]), b""
