"""What the local fleet decides, without a machine."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from zeropull.errors import NoCapacity
from zeropull.linux.mounts import parse_mountinfo
from zeropull.providers.local.capacity import (
    HostSize,
    check_count,
    plan_accelerators,
    plan_limits,
    plan_rate,
)
from zeropull.providers.local.cgroups import (
    Hierarchy,
    Limits,
    cgroup_version,
    create_instance,
    find_hierarchies,
)
from zeropull.providers.local.firewall import render_host_table, render_node_table
from zeropull.providers.local.foreign_rules import plan_rules
from zeropull.providers.local.machine import unusable_reason
from zeropull.providers.local.names import FleetNames
from zeropull.providers.local.network import free_subnet
from zeropull.providers.local.resolvers import Resolvers, read_resolvers
from zeropull.providers.protocol import MachineShape

GPU_TYPE = MachineShape("ml.g5.12xlarge", 48, 192 << 30, 4, "nvidia.com/gpu", 40_000_000_000)
NAMES = FleetNames(Path("/var/lib/zeropull"), Path("/run/zeropull/x"))


def test_gpus_are_given_out_whole_and_refused_with_the_arithmetic() -> None:
    devices = [f"nvidia.com/gpu={index}" for index in range(6)]
    assert plan_accelerators(GPU_TYPE, devices, devices[:2], simulate=False) == tuple(devices[2:])
    with pytest.raises(NoCapacity, match=r"needs 4 .* has 6, of which 3 are given out and 3"):
        plan_accelerators(GPU_TYPE, devices, devices[:3], simulate=False)
    assert plan_accelerators(GPU_TYPE, (), (), simulate=True) == ("0", "1", "2", "3")


def test_limits_and_rates_follow_type_host_and_settings() -> None:
    assert plan_limits(GPU_TYPE, HostSize(2, 8 << 30)).vcpus == 2
    assert plan_rate(GPU_TYPE, limited=False, rate_bits_per_s=5) is None
    assert plan_rate(GPU_TYPE, limited=True, rate_bits_per_s=None) == 40_000_000_000
    assert plan_rate(GPU_TYPE, limited=True, rate_bits_per_s=5) == 5
    with pytest.raises(NoCapacity, match="2 of at most 2"):
        check_count(2, 2)


def test_the_lowest_free_subnet_is_taken() -> None:
    taken = [IPv4Network("198.18.0.0/24"), IPv4Network("198.18.1.128/25")]
    subnet = free_subnet("198.18.0.0/15", taken)
    assert (str(subnet), subnet.gateway, subnet.address) == (
        "198.18.2.0/24",
        "198.18.2.1",
        "198.18.2.2",
    )
    with pytest.raises(NoCapacity):
        free_subnet("198.18.0.0/24", taken)


def test_a_subnet_that_the_instance_had_before_is_preferred_if_it_is_free_and_ours() -> None:
    before = free_subnet("198.18.7.0/24", ())
    assert free_subnet("198.18.0.0/15", (), before) == before
    lowest = "198.18.0.0/24"
    assert str(free_subnet("198.18.0.0/15", [before.network], before)) == lowest
    assert str(free_subnet("198.19.0.0/16", (), before)) == "198.19.0.0/24"


def test_names_fit_into_a_links_name_and_tell_fleets_apart() -> None:
    instance = NAMES.instance("i-0123456789abcdef0")
    assert len(instance.link) == 15
    other = FleetNames(Path("/srv/other"), Path("/run/zeropull/y")).instance("i-0123456789abcdef0")
    assert {instance.link, instance.netns, instance.cgroup}.isdisjoint(
        {other.link, other.netns, other.cgroup}
    )


def test_the_resolvers_behind_systemd_resolved_are_used(tmp_path: Path) -> None:
    stub, upstream = tmp_path / "stub", tmp_path / "upstream"
    stub.write_text("nameserver 127.0.0.53\noptions edns0\nsearch lan\n")
    upstream.write_text("nameserver 10.0.0.1\nnameserver fe80::1\n")
    resolvers = read_resolvers(stub, upstream)
    subnet = free_subnet("198.18.0.0/15", ())
    assert resolvers.render(subnet) == "nameserver 10.0.0.1\noptions edns0\nsearch lan\n"
    assert resolvers.relayed is None
    assert "ip daddr 127.0.0.53 udp dport 53 dnat to 10.0.0.1:53" in render_node_table(
        subnet, (), resolvers
    )


def test_another_resolver_on_the_loopback_is_relayed_by_the_gateway(tmp_path: Path) -> None:
    stub = tmp_path / "stub"
    stub.write_text("nameserver 127.0.0.1\n")
    resolvers = read_resolvers(stub, tmp_path / "missing")
    assert resolvers == Resolvers((), ("127.0.0.1",))
    subnet = free_subnet("198.18.0.0/15", ())
    assert resolvers.render(subnet) == "nameserver 198.18.0.1\n"
    assert "udp dport 53 dnat to 127.0.0.1:53" in render_host_table(
        NAMES, "198.18.0.0/15", (), resolvers
    )


@pytest.mark.parametrize(
    ("listing", "chains"),
    [
        (["-P INPUT ACCEPT", "-P FORWARD ACCEPT"], []),
        (["-P FORWARD DROP", "-N DOCKER-USER"], ["DOCKER-USER", "DOCKER-USER"]),
        (["-P INPUT DROP", "-P FORWARD DROP"], ["FORWARD", "FORWARD", "INPUT"]),
    ],
)
def test_rules_go_where_another_firewall_drops(listing: list[str], chains: list[str]) -> None:
    assert [rule[1] for rule in plan_rules(listing, "zpabcde", "abcdef01")] == chains


def test_hierarchies_are_found_in_every_layout() -> None:
    v1 = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    named = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
    v2 = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    pure = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
    for text, version in ((v1 + named, "v1"), (v1 + v2, "hybrid"), (pure, "v2"), ("", "none")):
        assert cgroup_version(find_hierarchies(parse_mountinfo(text))) == version
    (memory, system) = find_hierarchies(parse_mountinfo(v1 + named))
    assert (memory.controllers, system.controllers) == ({"memory"}, frozenset())


def test_version_2_delegates_its_controllers_and_limits_the_instance(tmp_path: Path) -> None:
    for folder in ("", "f", "f/i", "f/i/node", "f/i/copies"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "cgroup.controllers").write_text("cpu memory pids hugetlb")
        (tmp_path / folder / "cgroup.subtree_control").write_text("")
    for knob in ("cpu.max", "memory.max", "pids.max"):
        (tmp_path / "f" / "i" / knob).touch()
    hierarchy = Hierarchy(tmp_path, 2)

    files = create_instance([hierarchy], "f/i", Limits(1.5, 1 << 30, 100))

    assert files == [tmp_path / "f/i/node/cgroup.procs"]
    assert (tmp_path / "f/i/cpu.max").read_text() == "150000 100000"
    assert (tmp_path / "f/i/memory.max").read_text() == str(1 << 30)
    assert (tmp_path / "f/i/pids.max").read_text() == "100"
    for folder in ("", "f", "f/i"):
        assert (tmp_path / folder / "cgroup.subtree_control").read_text().startswith("+")


def test_a_machine_that_cannot_serve_is_told_so_in_one_sentence() -> None:
    for reason in (unusable_reason("darwin", 0), unusable_reason("linux", 1000)):
        assert reason is not None
        assert reason.endswith(".")
        assert "\n" not in reason
    assert unusable_reason("linux", 0) is None


def test_an_instance_never_gets_all_tasks_of_the_machine() -> None:
    shape = MachineShape("ml.test", 1, 1 << 30)
    assert plan_limits(shape, HostSize(1, 1 << 30, pids=32_768)).pids == 16_384
    assert plan_limits(shape, HostSize(1, 1 << 30, pids=1 << 22)).pids == 65_536
