"""Which name servers the nodes and their containers use (resolv.conf(5)).

A resolver on the host's loopback cannot be reached from a network namespace. systemd-resolved has
the servers behind it in a file, and its own socket is bound to the device lo, so that no relay
reaches it: those servers are used instead. Any other local resolver is relayed by the gateway.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from zeropull.providers.local.network import Subnet

_RESOLV_CONF = Path("/etc/resolv.conf")
_UPSTREAM_CONF = Path("/run/systemd/resolve/resolv.conf")


@dataclass(frozen=True, slots=True)
class Resolvers:
    """`reachable` from a node as they are; `on_loopback` are the host's that are not.

    `other_lines`: search and options, kept.
    """

    reachable: tuple[str, ...]
    on_loopback: tuple[str, ...] = ()
    other_lines: tuple[str, ...] = ()

    @property
    def relayed(self) -> str | None:
        """The host's loopback resolver behind the gateway's port 53; None = not needed."""
        return self.on_loopback[0] if self.on_loopback and not self.reachable else None

    def for_node(self, subnet: Subnet) -> tuple[str, ...]:
        """Name servers in the order of use."""
        return self.reachable or (subnet.gateway,)

    def render(self, subnet: Subnet) -> str:
        """The resolv.conf of the node's containers."""
        servers = [f"nameserver {server}" for server in self.for_node(subnet)]
        return "\n".join([*servers, *self.other_lines]) + "\n"


def read_resolvers(
    resolv_conf: Path = _RESOLV_CONF, upstream_conf: Path = _UPSTREAM_CONF
) -> Resolvers:
    """The host's resolvers as nodes can use them."""
    servers, others = _parse(resolv_conf)
    reachable, loopback = _split(servers)
    if loopback and not reachable:
        reachable, _ = _split(_parse(upstream_conf)[0])
    return Resolvers(tuple(reachable), tuple(loopback), tuple(others))


def _parse(path: Path) -> tuple[list[str], list[str]]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return [], []
    servers = [line.split()[1] for line in lines if line.startswith("nameserver") and " " in line]
    others = [line.strip() for line in lines if line.startswith(("search", "options", "domain"))]
    return servers, others


def _split(servers: list[str]) -> tuple[list[str], list[str]]:
    """IPv4 only: nodes have no IPv6."""
    reachable: list[str] = []
    loopback: list[str] = []
    for server in servers:
        try:
            address = ipaddress.ip_address(server)
        except ValueError:
            continue
        if address.version == 4:
            (loopback if address.is_loopback else reachable).append(server)
    return reachable, loopback
