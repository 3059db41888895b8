"""What instances reach: the relay to the host's loopback, name servers, and not each other."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.fixtures.local_fleet import Fleet, get, http_server, request, running_fleet
from zeropull.linux.network_namespaces import create_netns, delete_netns, in_netns
from zeropull.linux.nftables import list_rules
from zeropull.providers.node_file import read_node_config
from zeropull.resources.settings import FleetSettings


async def test_an_allowed_port_of_the_hosts_loopback_is_reached_and_no_other(fleet: Fleet) -> None:
    with http_server() as open_port, http_server() as closed_port:
        launched = await fleet.provider.launch(request())
        names = fleet.names.instance(launched.instance_id)
        config = read_node_config(names.node_file)
        assert get(names.netns, "127.0.0.1", open_port) is None

        await fleet.provider.allow_loopback_port(open_port)

        assert get(names.netns, "127.0.0.1", open_port) == b"hello"
        assert get(names.netns, "127.0.0.1", closed_port) is None
        assert get(names.netns, config.gateway, closed_port) is None


async def test_ports_that_nobody_needs_any_more_are_closed_again(fleet: Fleet) -> None:
    with http_server() as kept, http_server() as closed:
        launched = await fleet.provider.launch(request())
        await fleet.provider.allow_loopback_port(kept)
        await fleet.provider.allow_loopback_port(closed)
        other = fleet.another_provider()
        await other.keep_loopback_ports({kept})
        later = await other.launch(request())
        for each in (launched, later):
            netns = fleet.names.instance(each.instance_id).netns
            assert get(netns, "127.0.0.1", kept) == b"hello"
            assert get(netns, "127.0.0.1", closed) is None
        await other.keep_loopback_ports(())
        assert get(netns, "127.0.0.1", kept) is None


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "100.100.100.200", "168.63.129.16", "198.51.100.7"]
)
async def test_metadata_services_and_blocked_networks_are_out_of_reach(
    tmp_path: Path, address: str
) -> None:
    """The service is in a namespace behind the host, as a cloud's is behind its machines."""
    settings = FleetSettings(blocked_networks=("198.51.100.0/24",))
    async with running_fleet(tmp_path, settings) as fleet:
        launched = await fleet.provider.launch(request())
        netns = fleet.names.instance(launched.instance_id).netns
        with outside(fleet, [address, "203.0.113.9"]) as port:
            assert in_netns(netns, lambda: _connects("203.0.113.9", port)), "it routes"
            assert not in_netns(netns, lambda: _connects(address, port))


async def test_nothing_comes_from_a_node_by_ipv6(fleet: Fleet) -> None:
    launched = await fleet.provider.launch(request())
    names = fleet.names.instance(launched.instance_id)
    rules = list_rules(["list", "table", "ip6", names.fleet.nft_table])
    drops = [item["rule"] for item in rules if "rule" in item]
    assert {rule["chain"] for rule in drops} == {"to_host", "through_host"}
    await fleet.provider.terminate(launched.instance_id)
    assert await fleet.left_behind() == {}


async def test_an_instance_that_comes_later_reaches_allowed_ports_too(fleet: Fleet) -> None:
    with http_server() as port:
        await fleet.provider.launch(request())
        await fleet.provider.allow_loopback_port(port)
        later = await fleet.another_provider().launch(request())
        netns = fleet.names.instance(later.instance_id).netns
        assert get(netns, "127.0.0.1", port) == b"hello"


async def test_the_host_reaches_instances_and_they_do_not_reach_each_other(fleet: Fleet) -> None:
    first = await fleet.provider.launch(request())
    second = await fleet.provider.launch(request())
    assert first.address and second.address and first.address != second.address
    address = first.address
    server = in_netns(
        fleet.names.instance(first.instance_id).netns,
        lambda: socket.create_server((address, 0)),
    )
    with server:
        port = server.getsockname()[1]
        socket.create_connection((address, port), timeout=5).close()
        other = fleet.names.instance(second.instance_id).netns
        assert not in_netns(other, lambda: _connects(address, port))


async def test_services_on_all_addresses_of_the_host_are_out_of_reach(fleet: Fleet) -> None:
    launched = await fleet.provider.launch(request())
    names = fleet.names.instance(launched.instance_id)
    gateway = read_node_config(names.node_file).gateway
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        assert not in_netns(names.netns, lambda: _connects(gateway, port))


async def test_the_nodes_name_servers_are_not_on_the_loopback(fleet: Fleet) -> None:
    launched = await fleet.provider.launch(request())
    config = read_node_config(fleet.names.instance(launched.instance_id).node_file)
    servers = [
        line.split()[1]
        for line in config.resolv_conf.read_text().splitlines()
        if line.startswith("nameserver")
    ]
    assert servers
    assert not any(server.startswith("127.") for server in servers)


async def test_downloads_keep_to_the_rate_of_the_link(tmp_path: Path) -> None:
    settings = FleetSettings(limit_network=True, network_bits_per_s=40_000_000)
    body = bytes(4_000_000)
    async with running_fleet(tmp_path, settings) as fleet:
        with http_server(body) as port:
            launched = await fleet.provider.launch(request())
            await fleet.provider.allow_loopback_port(port)
            netns = fleet.names.instance(launched.instance_id).netns
            began = time.monotonic()
            assert get(netns, "127.0.0.1", port) == body
            # 0.8 s at the nominal rate; without a limit it is a hundredth of that.
            assert time.monotonic() - began > 0.5


@contextlib.contextmanager
def outside(fleet: Fleet, addresses: Sequence[str]) -> Iterator[int]:
    """A namespace behind the host with these addresses; yields the port of its server."""
    name = f"{fleet.names.netns_prefix}outside"
    create_netns(name)
    try:
        ip(f"link add outside0 type veth peer name eth0 netns {name}")
        ip("addr add 203.0.113.1/24 dev outside0")
        ip("link set outside0 up")
        ip(f"-n {name} link set eth0 up")
        ip(f"-n {name} addr add 203.0.113.9/24 dev eth0")
        ip(f"-n {name} route add default via 203.0.113.1")
        for address in set(addresses) - {"203.0.113.9"}:
            ip(f"-n {name} addr add {address}/32 dev eth0")
            ip(f"route add {address}/32 via 203.0.113.9 dev outside0")
        with in_netns(name, lambda: socket.create_server(("0.0.0.0", 0))) as server:
            yield server.getsockname()[1]
    finally:
        delete_netns(name)
        subprocess.run(["ip", "link", "delete", "outside0"], check=False, capture_output=True)


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def _connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True
