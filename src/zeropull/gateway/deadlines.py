"""The requests that are at a copy, and when each of them has taken too long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from zeropull.resources.settings import GatewaySettings


class Timed(Protocol):
    """A request at a copy."""

    def time_out(self) -> None:
        """It took longer than its kind may."""

    def end_at_former_address(self) -> None:
        """Routes have changed: its copy may have another address."""


class Deadlines:
    """All requests of one kind may take the same time, so each kind is in order of its deadlines.

    `now_s` is monotonic, and may lag by the pause between two sweeps.
    """

    __slots__ = ("_settings", "_streams", "_unaries")

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._unaries: dict[Timed, float] = {}  # request -> deadline
        self._streams: dict[Timed, float] = {}

    def __len__(self) -> int:
        return len(self._unaries) + len(self._streams)

    def __iter__(self) -> Iterator[Timed]:
        """A copy of what there is, so that requests may end meanwhile."""
        return iter([*self._unaries, *self._streams])

    def watch(self, request: Timed, streamed: bool, now_s: float) -> None:
        if streamed:
            self._streams[request] = now_s + self._settings.stream_timeout_s
        else:
            self._unaries[request] = now_s + self._settings.request_timeout_s

    def unwatch(self, request: Timed, streamed: bool) -> None:
        (self._streams if streamed else self._unaries).pop(request, None)

    def sweep(self, now_s: float) -> None:
        """Time out what is over its deadline."""
        for running in (self._unaries, self._streams):
            while running:
                request, deadline_s = next(iter(running.items()))
                if deadline_s > now_s:
                    break
                del running[request]
                request.time_out()
