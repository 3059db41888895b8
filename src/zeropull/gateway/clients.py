"""The connections of clients that are open."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any, Protocol

from zeropull.resources.settings import GatewaySettings

IPV6_CLIENT_BITS = 64  # what one client has of IPv6 addresses (RFC 6177)


class Client(Protocol):
    """One connection."""

    transport: asyncio.Transport
    address: str

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer on it."""

    def sweep(self, now_s: float) -> None:
        """Close it when it has been silent for too long."""

    def close_if_idle(self) -> None: ...


class Clients:
    """All of them, bounded in number.

    When there are too many, the address with the most of them loses the first that is idle. So one
    client with thousands of idle connections shuts nobody out.
    """

    __slots__ = ("_by_address", "_settings", "drained", "evicted", "open", "refused")

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._by_address: dict[str, dict[Client, None]] = {}  # each in order of arrival
        self.open: set[Client] = set()
        self.refused = 0  # beyond `settings.max_connections`, and none was idle
        self.evicted = 0  # that made room for others
        self.drained = asyncio.Event()  # the last one has gone

    def enter(self, client: Client) -> bool:
        """False: there are too many, it has to go."""
        self.open.add(client)
        self._by_address.setdefault(client.address, {})[client] = None
        if len(self.open) > self._settings.max_connections:
            idle = self._idle_of_most(client)
            if idle is None:
                self.refused += 1
                return False
            self.evicted += 1
            self.leave(idle)  # at once: others may come before its transport is closed
            idle.transport.abort()
        return True

    def leave(self, client: Client) -> None:
        """May be called twice."""
        self.open.discard(client)
        theirs = self._by_address.get(client.address)
        if theirs is not None:
            theirs.pop(client, None)
            if not theirs:
                del self._by_address[client.address]
        if not self.open:
            self.drained.set()

    def sweep(self, now_s: float) -> None:
        for client in list(self.open):
            client.sweep(now_s)

    def _idle_of_most(self, newcomer: Client) -> Client | None:
        most = max(self._by_address.values(), key=len)
        return next((one for one in most if one is not newcomer and one.is_idle), None)


def address_of(peer: Any) -> str:
    """Whose connection it is: an IPv4 address, a /64 of IPv6; "?" when it has gone already."""
    if not isinstance(peer, tuple):
        return "?"
    address = ipaddress.ip_address(peer[0].partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    prefix = int(address) >> (128 - IPV6_CLIENT_BITS) << (128 - IPV6_CLIENT_BITS)
    return f"{ipaddress.IPv6Address(prefix)}/{IPV6_CLIENT_BITS}"


def is_on_this_machine(address: str) -> bool:
    """Whether `address_of` of a loopback address was this."""
    return address == "::/64" or address.startswith("127.")
