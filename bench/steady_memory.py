"""The gateway's memory under a load of every shape, and whose counts agree with whose.

Every minute has 20 s of small bodies, 20 s of large ones and 20 s of streamed answers, 32 at a
time, all signed. wrk cuts off what is in flight when its time is over: the gateway counts that as
cancelled.
"""

from __future__ import annotations

import re
import time
import urllib.request
from dataclasses import dataclass

from bench.contenders import Started, messages
from bench.readings import LAG_S
from bench.upstream import CHAT, Place, resident_bytes
from bench.wrk import load

CONCURRENCY = 32
SHAPE_S = 20


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of the gateway, and requests as each end has counted them."""

    minutes: int
    rss_start_bytes: int
    rss_minutes_bytes: tuple[int, ...]  # after each minute
    load_answered: int
    load_errors: int
    gateway_answered: int
    gateway_cancelled: int
    in_readings: int
    upstream_requests: int

    @property
    def lost(self) -> int:
        """Answered to the load, but not by the gateway, or by it and not by the upstream."""
        return max(0, self.load_answered - self.gateway_answered) + max(
            0, self.gateway_answered - self.upstream_requests
        )

    @property
    def doubled(self) -> int:
        return max(0, self.upstream_requests - self.gateway_answered - self.gateway_cancelled)

    def __str__(self) -> str:
        mib = [f"{size / 2**20:.1f}" for size in (self.rss_start_bytes, *self.rss_minutes_bytes)]
        return (
            f"memory over {self.minutes} minutes of load, MiB: {mib[0]} at the start, {mib[1]} "
            f"after 1 minute, {mib[-1]} at the end (each minute: {' '.join(mib[1:])})\n"
            f"requests: {self.load_answered} answered to the load ({self.load_errors} errors), "
            f"{self.gateway_answered} answered and {self.gateway_cancelled} cancelled by the "
            f"gateway, {self.upstream_requests} at the upstream: {self.lost} lost, "
            f"{self.doubled} doubled; {self.in_readings} in the readings that the store was given"
        )


def watch_memory(place: Place, started: Started, minutes: int, large_body: bytes) -> Memory:
    assert started.process is not None
    assert started.stream_path is not None and started.invocations is not None
    shapes = (
        (started.path, CHAT),
        (started.path, large_body),
        (started.stream_path, CHAT),
    )
    start, sizes = resident_bytes(started.process.pid), []
    first, answered, errors = place.requests(), 0, 0
    for minute in range(minutes):
        for path, body in shapes:
            seen = load(
                place.folder,
                f"http://127.0.0.1:{started.port}{path}",
                messages=messages(started, path, body),
                concurrency=CONCURRENCY,
                seconds=SHAPE_S,
            )
            answered, errors = answered + seen.requests, errors + seen.errors
        sizes.append(resident_bytes(started.process.pid))
        print(f"minute {minute + 1}: {sizes[-1] / 2**20:.1f} MiB, {answered} answers", flush=True)
    time.sleep(LAG_S)
    with urllib.request.urlopen(f"http://127.0.0.1:{started.port}/metrics", timeout=30) as page:
        metrics = page.read().decode()
    results = re.findall(r'requests_total\{[^}]*status="(\d+)"[^}]*\} (\d+)', metrics)
    return Memory(
        minutes,
        start,
        tuple(sizes),
        answered,
        errors,
        sum(int(count) for status, count in results if status != "499"),
        sum(int(count) for status, count in results if status == "499"),
        int(started.invocations.read_text()),
        place.requests() - first - 1,  # the last question was one itself
    )
