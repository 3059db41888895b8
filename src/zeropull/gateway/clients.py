"""The connections of clients that are open."""

from __future__ import annotations

import asyncio
from typing import Protocol

from zeropull.resources.settings import GatewaySettings


class Client(Protocol):
    """One connection."""

    transport: asyncio.Transport

    def sweep(self, now_s: float) -> None:
        """Close it when it has been silent for too long."""

    def close_if_idle(self) -> None: ...


class Clients:
    """All of them, bounded in number."""

    __slots__ = ("_settings", "drained", "open", "refused")

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self.open: set[Client] = set()
        self.refused = 0  # beyond `settings.max_connections`
        self.drained = asyncio.Event()  # the last one has gone

    def enter(self, client: Client) -> bool:
        """False: there are too many, it has to go."""
        self.open.add(client)
        if len(self.open) > self._settings.max_connections:
            self.refused += 1
            return False
        return True

    def leave(self, client: Client) -> None:
        self.open.discard(client)
        if not self.open:
            self.drained.set()

    def sweep(self, now_s: float) -> None:
        for client in list(self.open):
            client.sweep(now_s)
