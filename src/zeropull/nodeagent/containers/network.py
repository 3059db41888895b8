"""A network namespace for every copy, joined to the node's bridge by a veth pair.

Names are derived from the copy's id, so that whatever a killed agent left half made is found and
made anew or removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from zeropull.errors import NoCapacity
from zeropull.linux.network_namespaces import NETNS_DIR, create_netns, delete_netns, in_netns

INTERFACE = "eth0"


@dataclass(frozen=True, slots=True)
class CopyNetwork:
    """What one copy's network is made of."""

    namespace: str  # name below NETNS_DIR
    link: str  # the node's end of the veth pair, at most 15 characters
    address: str
    prefix: int
    gateway: str
    bridge: str
    mtu: int

    @property
    def path(self) -> Path:
        return NETNS_DIR / self.namespace


def choose_address(subnet: str, first: int, last: int, used: Collection[str]) -> str:
    """The lowest free address of the node's range.

    Raises:
        NoCapacity: all are taken.
    """
    network = ipaddress.ip_network(subnet)
    for host in range(first, last + 1):
        address = str(network.network_address + host)
        if address not in used:
            return address
    raise NoCapacity(
        f"all {last - first + 1} container addresses of {subnet} are in use on this node"
    )


def network_names(node_namespace: str, copy_id: str) -> tuple[str, str]:
    """Name of the namespace and of the link: the same for the same copy, always.

    The namespace's name begins with the node's own, by which the provider finds what an agent that
    is gone has left. The link needs no such name: both of its ends go with the namespaces.
    """
    key = hashlib.sha256(copy_id.encode()).hexdigest()
    return f"{node_namespace}-{key[:12]}", f"zp{key[:12]}"


def hardware_address(address: str) -> str:
    """A locally administered one that follows from the address: whoever gets the address next has
    it too, so that no neighbour's ARP entry is ever stale after a restart."""
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x7A, *ipaddress.ip_address(address).packed))


def make_network(network: CopyNetwork) -> None:
    """Make it from nothing; remains of an earlier attempt go first. Blocking."""
    remove_network(network.namespace, network.link)
    try:
        create_netns(network.namespace)
        with IPRoute() as netlink, network.path.open("rb") as namespace:
            netlink.link(
                "add",
                ifname=network.link,
                kind="veth",
                peer={
                    "ifname": INTERFACE,
                    "net_ns_fd": namespace.fileno(),
                    "mtu": network.mtu,
                    "address": hardware_address(network.address),
                },
            )
            (bridge,) = netlink.link_lookup(ifname=network.bridge)
            (link,) = netlink.link_lookup(ifname=network.link)
            netlink.link("set", index=link, mtu=network.mtu, master=bridge, state="up")
        in_netns(network.namespace, lambda: _configure_inside(network))
    except BaseException:
        remove_network(network.namespace, network.link)
        raise


def remove_network(namespace: str, link: str) -> None:
    """Take link and namespace away, whatever of them is there. Blocking."""
    with IPRoute() as netlink:
        for index in netlink.link_lookup(ifname=link):
            with contextlib.suppress(NetlinkError):
                netlink.link("del", index=index)
    delete_netns(namespace)


def _configure_inside(network: CopyNetwork) -> None:
    with IPRoute() as netlink:
        (loopback,) = netlink.link_lookup(ifname="lo")
        netlink.link("set", index=loopback, state="up")
        (index,) = netlink.link_lookup(ifname=INTERFACE)
        netlink.addr("add", index=index, address=network.address, prefixlen=network.prefix)
        netlink.link("set", index=index, state="up")
        netlink.route("add", dst="default", gateway=network.gateway)
