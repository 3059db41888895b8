"""Connections are bounded in number, and one client cannot shut the others out."""

from __future__ import annotations

from typing import Any, cast

import pytest

from zeropull.gateway.clients import Clients, address_of, is_on_this_machine
from zeropull.resources.settings import GatewaySettings


class Connection:
    def __init__(self, address: str, *, is_idle: bool = True) -> None:
        self.address, self.is_idle, self.is_aborted = address, is_idle, False
        self.transport = cast(Any, self)

    def abort(self) -> None:
        self.is_aborted = True

    def sweep(self, now_s: float) -> None: ...
    def close_if_idle(self) -> None: ...


def test_the_client_with_the_most_connections_loses_its_first_idle_one() -> None:
    clients = Clients(GatewaySettings(max_connections=4))
    many = [Connection("many", is_idle=number > 0) for number in range(3)]
    for one in [*many, Connection("few")]:
        assert clients.enter(one)
    assert clients.enter(Connection("new"))
    assert [one.is_aborted for one in many] == [False, True, False]
    assert (len(clients.open), clients.evicted, clients.refused) == (4, 1, 0)


def test_a_connection_is_refused_when_the_client_with_the_most_has_none_idle() -> None:
    clients = Clients(GatewaySettings(max_connections=2))
    busy = [Connection("many", is_idle=False) for _ in range(2)]
    for one in busy:
        assert clients.enter(one)
    newcomer = Connection("new")
    assert not clients.enter(newcomer)
    clients.leave(newcomer)
    assert (len(clients.open), clients.evicted, clients.refused) == (2, 0, 1)


def test_ten_thousand_idle_connections_of_one_client_shut_nobody_out() -> None:
    clients = Clients(GatewaySettings())
    for _ in range(10_000):
        assert clients.enter(Connection("many"))
    others = [Connection(f"other {number}") for number in range(200)]
    for one in others:
        assert clients.enter(one)
    assert not any(one.is_aborted for one in others)
    assert len(clients.open) == 10_000


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("198.18.0.7", 5), "198.18.0.7"),
        (("::ffff:198.18.0.7", 5, 0, 0), "198.18.0.7"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        (None, "?"),
    ],
)
def test_a_client_is_an_address_or_a_network_of_ipv6(peer: Any, address: str) -> None:
    assert address_of(peer) == address
    assert not is_on_this_machine(address)


def test_loopback_is_this_machine() -> None:
    assert is_on_this_machine(address_of(("127.0.0.1", 5)))
    assert is_on_this_machine(address_of(("::1", 5, 0, 0)))
