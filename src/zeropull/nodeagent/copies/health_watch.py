"""Watches a copy's container: its process, and its answers to GET /ping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from zeropull.containerd.tasks import TaskExit
from zeropull.nodeagent.containers import health

LATE_S = 1.0  # a pause of this process or of the machine; a busy loop is seldom so late


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the container is to be replaced. `was_healthy`: it has answered before."""

    was_healthy: bool
    message: str


class HealthWatch:
    """One container's pings. `became_healthy` is called once, with the first good answer.

    All ages are monotonic, and a pause (SIGSTOP, a suspended machine) does not count: the
    container had no chance to answer during it.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float,
        healthy: bool,
        started_before_s: float,
        window_began_before_s: float,
        became_healthy: Callable[[], Awaitable[None]],
        port: int = health.PORT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`started_before_s`: the age of the container; `window_began_before_s`: how much of
        `timeout_s` has passed already, earlier containers included."""
        self._address = address
        self._port = port
        self._timeout_s = timeout_s
        self._healthy = healthy
        self._became_healthy = became_healthy
        self._monotonic = monotonic
        now_s = self._seen_s = monotonic()
        self._started_s = now_s - started_before_s
        self._window_from_s = now_s - window_began_before_s

    async def until_problem(self) -> Problem:
        """Ping until the container has to be replaced."""
        bad = 0
        wait_s = 0.0
        while True:
            problem = await health.ping(self._address, self._port)
            now_s = self._now_s(wait_s)
            if not problem:
                bad = 0
                if not self._healthy:
                    self._healthy = True
                    await self._became_healthy()
            elif self._healthy:
                bad += 1
                if bad >= health.FAILURES_UNTIL_UNHEALTHY:
                    return Problem(True, f"/ping failed {bad} times in a row: {problem}")
            elif now_s - self._window_from_s > self._timeout_s:
                return Problem(False, _never_healthy(problem, self._timeout_s))
            wait_s = health.ping_interval_s(
                healthy=self._healthy, since_start_s=now_s - self._started_s
            )
            await asyncio.sleep(wait_s)

    def _now_s(self, waited_s: float) -> float:
        """Read the clock. What passed since the last reading beyond `waited_s` and one attempt is
        a pause of ours, for which the container is not blamed."""
        now_s = self._monotonic()
        passed_s = now_s - self._seen_s - waited_s
        self._seen_s = now_s
        if passed_s > health.ATTEMPT_TIMEOUT_S + LATE_S:
            self._window_from_s += passed_s
        return now_s


def describe_exit(ended: TaskExit | None) -> str:
    """How the container ended, for people; None: its process is gone without a trace."""
    if ended is None:
        return "the container's process is gone, and so is its exit status"
    if ended.exit_status < 128:
        return f"the container exited with status {ended.exit_status}"
    number = ended.exit_status - 128
    why = f"the container was ended by signal {number} (exit status {ended.exit_status})"
    if number == 9:
        why += ": if it ran out of memory, give it more or a larger instance type"
    return why


def _never_healthy(problem: str, timeout_s: float) -> str:
    return (
        f"the container did not answer GET /ping on port {health.PORT} with status 200 within "
        f"{timeout_s:g} s (last attempt: {problem}): check its log, or allow more with "
        "ContainerStartupHealthCheckTimeoutInSeconds"
    )
