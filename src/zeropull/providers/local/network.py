"""Links, addresses and rates of an instance, over netlink.

    host                              | instance's network namespace
    zp<...>  198.18.k.1/24  ---veth--- uplink (port of the bridge zp0, 198.18.k.2/24)
                                        containers .10 to .250 are further ports of zp0

The uplink being a port of the bridge, containers are reachable from the host at their own address,
without NAT. Rates: tbf at the host's end limits what the instance receives, tbf at the uplink what
it sends. tbf is one FIFO, and keeps 1 to 10 Gbit/s within 5 %.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from zeropull.errors import NoCapacity
from zeropull.linux.network_namespaces import NETNS_DIR, in_netns

BRIDGE, UPLINK = "zp0", "uplink"
_EXISTS = 17  # EEXIST
_TBF_DEPTH_S = 0.05  # what may wait in the queue
# 32 bits of bytes per second; faster types are not limited, no veth pair is that fast.
_MAX_TBF_BITS_PER_S = (1 << 32) * 8 - 8


@dataclass(frozen=True, slots=True)
class Subnet:
    """The /24 of one instance."""

    network: ipaddress.IPv4Network

    @property
    def gateway(self) -> str:
        return str(self.network[1])

    @property
    def address(self) -> str:
        return str(self.network[2])

    def __str__(self) -> str:
        return str(self.network)


def free_subnet(
    base: str, taken: Iterable[ipaddress.IPv4Network], before: Subnet | None = None
) -> Subnet:
    """A /24 of `base` that overlaps nothing of `taken`: `before`, which the instance has had
    already, or else the lowest.

    Raises:
        NoCapacity: every /24 is in use.
    """
    network = ipaddress.IPv4Network(base)
    used = [other for other in taken if other.overlaps(network) and other.prefixlen > 0]
    earlier = [before.network] if before and before.network.subnet_of(network) else []
    for candidate in itertools.chain(earlier, network.subnets(new_prefix=24)):
        if not any(candidate.overlaps(other) for other in used):
            return Subnet(candidate)
    raise NoCapacity(
        f"no /24 of {base} is free for another instance: {len(used)} networks of this host lie in "
        f"it; set fleet.network to a larger or another one"
    )


def networks_in_use() -> list[ipaddress.IPv4Network]:
    """Every network that this host has an address in or a route to, the default route left out."""
    found: set[ipaddress.IPv4Network] = set()
    with IPRoute() as netlink:
        for address in netlink.get_addr(family=2):
            found.add(
                ipaddress.IPv4Network(
                    f"{address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}", strict=False
                )
            )
        for route in netlink.get_routes(family=2):
            if (target := route.get_attr("RTA_DST")) and route["dst_len"] > 0:
                found.add(ipaddress.IPv4Network(f"{target}/{route['dst_len']}", strict=False))
    return sorted(found)


def subnet_of_link(link: str) -> Subnet | None:
    """The /24 that the host's end has, None when the link or its address is not there."""
    with IPRoute() as netlink:
        index = _index(netlink, link)
        if index is None:
            return None
        for address in netlink.get_addr(family=2, index=index):
            text = f"{address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}"
            return Subnet(ipaddress.IPv4Network(text, strict=False))
    return None


def uplink_mtu() -> int:
    """The MTU of the host's default route, so that nothing has to be fragmented on the way out."""
    with IPRoute() as netlink:
        for route in netlink.get_default_routes(family=2):
            if (index := route.get_attr("RTA_OIF")) is not None:
                (link,) = netlink.get_links(index)
                return min(1500, int(link.get_attr("IFLA_MTU")))
    return 1500


def connect(
    link: str, netns: str, subnet: Subnet, *, rate_bits_per_s: int | None, mtu: int
) -> None:
    """Join the namespace to the host; every part that is there already is kept. Idempotent."""
    with IPRoute() as netlink:
        if _index(netlink, link) is None:
            _create_pair(netlink, link, netns)
        index = _index(netlink, link)
        # The instance must not reach the host over a link-local IPv6 address, past the IPv4 rules.
        _sysctl(f"ipv6/conf/{link}/disable_ipv6", "1")
        # Answers of services on the host's 127.0.0.1 leave here; set for this link alone, so that
        # no other machine can send packets to the loopback network. The firewall guards the rest.
        _sysctl(f"ipv4/conf/{link}/route_localnet", "1")
        _sysctl(f"ipv4/conf/{link}/rp_filter", "1")
        _add_address(netlink, index, subnet.gateway)
        netlink.link("set", index=index, state="up", mtu=mtu)
        _limit(netlink, index, rate_bits_per_s)
    in_netns(netns, lambda: _set_up_inside(subnet, rate_bits_per_s, mtu))


def delete_link(link: str) -> None:
    """Remove the pair by its host's end. Idempotent."""
    with IPRoute() as netlink:
        index = _index(netlink, link)
        if index is not None:
            with suppress(NetlinkError):  # its other end went away with the namespace meanwhile
                netlink.link("del", index=index)


def list_links(prefix: str) -> list[str]:
    """Names of the host's links that begin with `prefix`."""
    with IPRoute() as netlink:
        names = [str(link.get_attr("IFLA_IFNAME")) for link in netlink.get_links()]
    return sorted(name for name in names if name.startswith(prefix))


def _create_pair(netlink: IPRoute, link: str, netns: str) -> None:
    with (NETNS_DIR / netns).open("rb") as namespace:
        netlink.link(
            "add",
            ifname=link,
            kind="veth",
            peer={"ifname": UPLINK, "net_ns_fd": namespace.fileno()},
        )


def _set_up_inside(subnet: Subnet, rate_bits_per_s: int | None, mtu: int) -> None:
    # /proc/sys/net is the one of the thread that opens it.
    for scope in ("all", "default"):
        with suppress(FileNotFoundError):
            _sysctl(f"ipv6/conf/{scope}/disable_ipv6", "1")
    with IPRoute() as netlink:
        netlink.link("set", index=_index(netlink, "lo"), state="up")
        uplink = _index(netlink, UPLINK)
        if _index(netlink, BRIDGE) is None:
            netlink.link("add", ifname=BRIDGE, kind="bridge")
        bridge = _index(netlink, BRIDGE)
        netlink.link("set", index=uplink, master=bridge, state="up", mtu=mtu)
        netlink.link("set", index=bridge, state="up", mtu=mtu)
        _remove_addresses(netlink, bridge, besides=subnet.address)
        _add_address(netlink, bridge, subnet.address)
        _sysctl(f"ipv4/conf/{BRIDGE}/route_localnet", "1")
        netlink.route("replace", dst="default", gateway=subnet.gateway)
        _limit(netlink, uplink, rate_bits_per_s)


def _limit(netlink: IPRoute, index: int | None, rate_bits_per_s: int | None) -> None:
    if rate_bits_per_s is None or rate_bits_per_s > _MAX_TBF_BITS_PER_S:
        return
    rate = rate_bits_per_s // 8
    # At least a few of the 64 KiB packets that segmentation offload hands over.
    burst = max(256 * 1024, rate // 250)
    netlink.tc(
        "replace",
        "tbf",
        index,
        handle=0x10000,
        parent=0xFFFFFFFF,
        rate=rate,
        burst=burst,
        limit=int(rate * _TBF_DEPTH_S) + burst,
    )


def _add_address(netlink: IPRoute, index: int | None, address: str) -> None:
    try:
        netlink.addr("add", index=index, address=address, prefixlen=24)
    except NetlinkError as error:
        if error.code != _EXISTS:
            raise


def _remove_addresses(netlink: IPRoute, index: int | None, *, besides: str) -> None:
    for address in netlink.get_addr(family=2, index=index):
        text = address.get_attr("IFA_ADDRESS")
        if text != besides:
            netlink.addr("del", index=index, address=text, prefixlen=address["prefixlen"])


def _index(netlink: IPRoute, link: str) -> int | None:
    found = netlink.link_lookup(ifname=link)
    return int(found[0]) if found else None


def _sysctl(name: str, value: str) -> None:
    path = Path("/proc/sys/net") / name
    if name.startswith("ipv6/") and not path.exists():
        return  # the host was booted without IPv6: there is nothing to switch off
    path.write_text(value)
