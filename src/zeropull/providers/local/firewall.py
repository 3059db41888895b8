"""What instances may reach: nftables rules of our own, on the host and in each instance.

On the host one table for the fleet: NAT to the outside; forwarding from an instance outwards and
answers back, nothing between instances, nothing to the clouds' metadata services; of the host
itself, only the allowed ports. Nodes have no IPv6, and a second table drops what they send by it.
In each instance one small table, for the relay to the host's loopback:

    127.0.0.1:PORT in the instance -> DNAT, SNAT -> gateway:PORT -> DNAT -> host's 127.0.0.1:PORT

All of it is done by the kernel and passes the rate-limited veth pair. A packet of an instance that
is addressed to 127.0.0.0/8 itself is dropped before any NAT, and route_localnet is set for the
fleet's own links only.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

from zeropull.linux.network_namespaces import in_netns
from zeropull.linux.nftables import list_rules, load_rules
from zeropull.providers.local.foreign_rules import forget_foreign_chains, pass_foreign_chains
from zeropull.providers.local.names import FleetNames, InstanceNames
from zeropull.providers.local.network import BRIDGE, Subnet
from zeropull.providers.local.resolvers import Resolvers
from zeropull.resources.settings import RUN_ROOT

# Where clouds hand out credentials to whoever asks from within: link-local (AWS, Google, Azure and
# most others), Alibaba Cloud, and Azure's WireServer.
METADATA_NETWORKS = ("169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32")
_NODE_TABLE = "zeropull"
_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_IPV6 = Path("/proc/sys/net/ipv6")  # not there where the kernel has none
# One for the whole host: fleets share the setting.
_SAVED_FORWARDING = Path(RUN_ROOT) / "ip_forward"
_TABLE_PREFIX = "zeropull_"


def render_host_table(
    names: FleetNames,
    network: str,
    ports: Collection[int],
    resolvers: Resolvers,
    blocked: Collection[str] = (),
) -> str:
    """The whole table of the fleet; loading it again replaces the rules in one transaction.
    `blocked`: networks that no node reaches, besides the metadata services."""
    closed = "".join(
        f'        iifname "{names.link_prefix}*" ip daddr {each} drop\n'
        for each in (*METADATA_NETWORKS, *sorted(blocked))
        if ":" not in each
    )
    links = f'"{names.link_prefix}*"'
    # The node itself has the host number 2; its containers reach no port of the host.
    node = f"iifname {links} ip saddr & 0.0.0.255 == 0.0.0.2"
    to_loopback = "fib daddr type local dnat to 127.0.0.1"
    table = f"ip {names.nft_table}"
    dns_nat, dns_accept = _dns_rules(links, network, resolvers)
    return f"""
table {table} {{}}
flush table {table}
table {table} {{
    set loopback_ports {{
        type inet_service
        {_elements(ports)}
    }}
    chain guard {{
        type filter hook prerouting priority raw; policy accept;
        iifname {links} ip daddr 127.0.0.0/8 drop
        iifname {links} fib saddr . iif oif missing drop
    }}
    chain relay {{
        type nat hook prerouting priority dstnat; policy accept;
{dns_nat}        {node} ip daddr {network} tcp dport @loopback_ports {to_loopback}
    }}
    chain to_host {{
        type filter hook input priority filter; policy accept;
        iifname {links} ct state established,related accept
{dns_accept}        {node} tcp dport @loopback_ports accept
        iifname {links} icmp type echo-request accept
        iifname {links} drop
    }}
    chain through_host {{
        type filter hook forward priority filter; policy accept;
        iifname {links} oifname "zp*" drop
{closed}        iifname {links} accept
        oifname {links} ct state established,related accept
        oifname {links} drop
    }}
    chain to_outside {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {network} oifname != "zp*" oifname != "lo" masquerade
    }}
}}
"""


def _dns_rules(links: str, network: str, resolvers: Resolvers) -> tuple[str, str]:
    """Rules that lead queries of containers to the host's name servers, and that let them in."""
    nat = accept = ""
    for protocol in ("udp", "tcp"):
        if resolvers.relayed is not None:
            nat += (
                f"        iifname {links} ip daddr {network} fib daddr type local "
                f"{protocol} dport 53 dnat to {resolvers.relayed}:53\n"
            )
            accept += f"        iifname {links} ct status dnat {protocol} dport 53 accept\n"
    for server in resolvers.reachable:
        # The host itself may be the name server, at an address that is not its loopback.
        for protocol in ("udp", "tcp"):
            accept += f"        iifname {links} ip daddr {server} {protocol} dport 53 accept\n"
    return nat, accept


def render_node_table(subnet: Subnet, ports: Collection[int], resolvers: Resolvers) -> str:
    """The table inside one instance: its own 127.0.0.1:PORT leads to the host's."""
    table = f"ip {_NODE_TABLE}"
    dns = ""
    for resolver in resolvers.on_loopback:
        target = resolvers.for_node(subnet)[0]
        for protocol in ("udp", "tcp"):
            dns += f"        ip daddr {resolver} {protocol} dport 53 dnat to {target}:53\n"
    return f"""
table {table} {{}}
flush table {table}
table {table} {{
    set loopback_ports {{
        type inet_service
        {_elements(ports)}
    }}
    chain relay {{
        type nat hook output priority -100; policy accept;
{dns}        ip daddr 127.0.0.1 tcp dport @loopback_ports dnat to {subnet.gateway}
    }}
    chain source {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{BRIDGE}" ip saddr 127.0.0.0/8 snat to {subnet.address}
    }}
    chain guard {{
        type filter hook prerouting priority raw; policy accept;
        iifname != "lo" ip daddr 127.0.0.0/8 drop
    }}
}}
"""


def render_ipv6_table(names: FleetNames) -> str:
    """Nothing comes from a node by IPv6: neither to the host nor to fd00:ec2::254 (AWS)."""
    links = f'"{names.link_prefix}*"'
    table = f"ip6 {names.nft_table}"
    return f"""
table {table} {{}}
flush table {table}
table {table} {{
    chain to_host {{
        type filter hook input priority filter; policy accept;
        iifname {links} drop
    }}
    chain through_host {{
        type filter hook forward priority filter; policy accept;
        iifname {links} drop
    }}
}}
"""


def open_host(
    names: FleetNames,
    network: str,
    ports: Collection[int],
    resolvers: Resolvers,
    blocked: Collection[str] = (),
) -> None:
    """Load the fleet's tables, turn forwarding on, and pass other people's FORWARD rules."""
    _remember_forwarding()
    _IP_FORWARD.write_text("1")
    load_rules(render_host_table(names, network, ports, resolvers, blocked))
    if _IPV6.exists():
        load_rules(render_ipv6_table(names))
    pass_foreign_chains(names.link_prefix, names.tag)


def open_node(
    names: InstanceNames, subnet: Subnet, ports: Collection[int], resolvers: Resolvers
) -> None:
    """Load the table inside the instance."""
    in_netns(names.netns, lambda: load_rules(render_node_table(subnet, ports, resolvers)))


def change_ports(
    names: FleetNames,
    instances: Collection[InstanceNames],
    *,
    opened: Collection[int] = (),
    closed: Collection[int] = (),
) -> None:
    """Let every instance, and those that come, reach these ports of the host's 127.0.0.1, and
    those no more. Connections that are open stay."""
    for verb, ports in (("add", opened), ("delete", closed)):
        if not ports:
            continue
        change = f"{{ {', '.join(map(str, sorted(ports)))} }}\n"
        load_rules(f"{verb} element ip {names.nft_table} loopback_ports {change}")
        in_node = f"{verb} element ip {_NODE_TABLE} loopback_ports {change}"
        for instance in instances:
            in_netns(instance.netns, partial(load_rules, in_node))


def allowed_ports(names: FleetNames) -> set[int]:
    """The ports in the fleet's table; empty when there is no table."""
    if names.nft_table not in _tables():
        return set()
    listing = list_rules(["list", "set", "ip", names.nft_table, "loopback_ports"])
    return {
        int(port)
        for item in listing
        if "set" in item
        for port in item["set"].get("elem", [])
        if isinstance(port, int)
    }


def close_host(names: FleetNames) -> None:
    """Remove every rule, and put forwarding back once no fleet of this host is left. Idempotent."""
    forget_foreign_chains(names.tag)
    for family in ("ip", "ip6"):
        if names.nft_table in _tables(family):
            load_rules(f"delete table {family} {names.nft_table}\n")
    if any(table.startswith(_TABLE_PREFIX) for table in _tables()):
        return
    if _SAVED_FORWARDING.exists():
        if _SAVED_FORWARDING.read_text().strip() == "0":
            _IP_FORWARD.write_text("0")
        _SAVED_FORWARDING.unlink()


def _remember_forwarding() -> None:
    """Only the first fleet of the host sees the setting as it was."""
    if not _SAVED_FORWARDING.exists():
        _SAVED_FORWARDING.parent.mkdir(parents=True, exist_ok=True)
        _SAVED_FORWARDING.write_text(_IP_FORWARD.read_text())


def _elements(ports: Collection[int]) -> str:
    return f"elements = {{ {', '.join(map(str, sorted(ports)))} }}" if ports else ""


def _tables(family: str = "ip") -> set[str]:
    return {
        item["table"]["name"]
        for item in list_rules(["list", "tables", family])
        if "table" in item and item["table"]["family"] == family
    }
