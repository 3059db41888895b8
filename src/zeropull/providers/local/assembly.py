"""Making an instance, part by part; every part that is there already is kept.

The same steps launch, repair after a crash, and bring back after a reboot.
"""

from __future__ import annotations

import ipaddress
import platform
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from zeropull.containerd.config import ContainerdConfig, can_remap_ids, render_config
from zeropull.errors import ConfigurationError, Unavailable
from zeropull.linux import network_namespaces
from zeropull.providers.local import cgroups, firewall, network
from zeropull.providers.local.delivery import NetworkDelivery
from zeropull.providers.local.names import InstanceNames
from zeropull.providers.local.network import Subnet
from zeropull.providers.local.processes import (
    AGENT,
    CONTAINERD,
    HOLDER,
    RECEIVER,
    SNAPSHOTTER,
    accepts,
    daemon_pid,
    find_program,
    kill_daemon,
    start_daemon,
)
from zeropull.providers.local.records import InstanceRecord
from zeropull.providers.local.resolvers import read_resolvers
from zeropull.providers.local.spawner import Spawner
from zeropull.providers.local.volumes import attach_volume
from zeropull.providers.node_file import read_node_config, write_node_config
from zeropull.resources.node import NodeConfig
from zeropull.resources.settings import FleetSettings

AGENT_COMMAND = (sys.executable, "-m", "zeropull.daemons.node_agent", "--config", "{config}")
SNAPSHOTTER_COMMAND = (
    sys.executable, "-m", "zeropull.daemons.snapshotter", "--socket", "{socket}",
    "--state", "{state}", "--catalog", "{catalog}", "--mounts", "{mounts}",
    "--namespace", "{namespace}", "--status-socket", "{status}", "--log-level", "{level}",
)  # fmt: skip
HOLDER_COMMAND = (sys.executable, "-m", "zeropull.daemons.holder", "--socket", "{holder}")
RECEIVER_COMMAND = (sys.executable, "-m", "zeropull.daemons.receiver", "--config", "{receiver}")
_LOG_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Programs:
    """What is run on a node."""

    containerd: str
    runc: str
    snapshotter: tuple[str, ...]
    agent: tuple[str, ...]
    log_level: str = "info"


def connect_node(
    names: InstanceNames,
    base_network: str,
    *,
    rate_bits_per_s: int | None,
    ports: Collection[int],
    blocked: Collection[str] = (),
) -> Subnet:
    """Namespace, link and rules; returns the sub-net. The caller holds the host's lock.

    After a reboot the instance has its old sub-net again unless somebody else has it by now.
    """
    resolvers = read_resolvers()
    subnet = network.subnet_of_link(names.link)
    if subnet is not None and not network_namespaces.netns_exists(names.netns):
        network.delete_link(names.link)  # its other end hangs in a namespace without a name
        subnet = None
    if subnet is None:
        before = _earlier_subnet(names)
        subnet = network.free_subnet(base_network, network.networks_in_use(), before)
        if before is not None and subnet != before:
            # A running one gives out addresses of the old; the next reads which one it is now.
            kill_daemon(names, AGENT)
    firewall.open_host(names.fleet, base_network, ports, resolvers, blocked)
    network_namespaces.create_netns(names.netns)
    network.connect(
        names.link, names.netns, subnet, rate_bits_per_s=rate_bits_per_s, mtu=network.uplink_mtu()
    )
    firewall.open_node(names, subnet, ports, resolvers)
    return subnet


def _earlier_subnet(names: InstanceNames) -> Subnet | None:
    try:
        return Subnet(ipaddress.IPv4Network(read_node_config(names.node_file).subnet))
    except (ValueError, ConfigurationError):
        return None


def start_node(
    names: InstanceNames,
    record: InstanceRecord,
    subnet: Subnet,
    *,
    limits: cgroups.Limits,
    settings: FleetSettings,
    programs: Programs,
    containerd_version: tuple[int, int, int],
    spawner: Spawner | None = None,
    delivery: NetworkDelivery | None = None,
) -> dict[str, subprocess.Popen[bytes] | None]:
    """Folders, volumes, limits and daemons; returns the daemons that had to be started, with the
    processes that are the caller's children."""
    config = _node_config(names, record, subnet, limits, settings, programs)
    _make_folders(names, config)
    config.resolv_conf.write_text(read_resolvers().render(subnet))
    if delivery is not None and record.source_token:
        delivery.write_config(names, config, record.source_token)
    else:
        for volume in record.volumes:
            # A generation that is gone is not worth failing for: the node pulls instead.
            if Path(volume.path).is_dir():
                attach_volume(names, volume.generation, Path(volume.path))
    write_node_config(names.node_file, config)
    groups = cgroups.create_instance(cgroups.find_hierarchies(), names.cgroup, limits)
    started: dict[str, subprocess.Popen[bytes] | None] = {}
    for role, command in _commands(names, config, programs, containerd_version).items():
        if daemon_pid(names, role) is None:
            started[role] = start_daemon(names, role, command, groups, spawner)
    return started


def is_whole(names: InstanceNames, record: InstanceRecord) -> bool:
    """Nothing of the instance has to be repaired."""
    receiving = (HOLDER, RECEIVER) if record.source_token else ()
    roles = (*receiving, SNAPSHOTTER, CONTAINERD, AGENT)
    return (
        all(daemon_pid(names, role) is not None for role in roles)
        and network_namespaces.netns_exists(names.netns)
        and network.subnet_of_link(names.link) is not None
    )


def is_ready(names: InstanceNames) -> bool:
    """The agent runs and containerd answers. Our plugin may come later: images come without it."""
    return daemon_pid(names, AGENT) is not None and accepts(names.containerd_socket)


def check_alive(names: InstanceNames) -> None:
    """Raises:
    Unavailable: containerd or the agent has ended again; with the end of its log.
    """
    for role in (CONTAINERD, AGENT):
        if daemon_pid(names, role) is None:
            raise Unavailable(
                f"{role} of {names.instance_id} ended right after its start: {_tail(names, role)}"
            )


def not_ready(names: InstanceNames, waited_s: float) -> Unavailable:
    return Unavailable(
        f"containerd of {names.instance_id} does not answer after {waited_s:g} s: "
        f"{_tail(names, CONTAINERD)}"
    )


def _node_config(
    names: InstanceNames,
    record: InstanceRecord,
    subnet: Subnet,
    limits: cgroups.Limits,
    settings: FleetSettings,
    programs: Programs,
) -> NodeConfig:
    return NodeConfig(
        instance_id=names.instance_id,
        node_token=record.node_token,
        control_socket=str(names.fleet.control_socket),
        disk_dir=str(names.disk_dir),
        run_dir=str(names.run_dir),
        instance_type=record.shape.name,
        vcpus=int(limits.vcpus),
        memory_bytes=limits.memory_bytes,
        subnet=str(subnet),
        gateway=subnet.gateway,
        address=subnet.address,
        cgroup_parent=f"/{names.cgroup}/{cgroups.COPIES}",
        bridge=network.BRIDGE,
        netns=names.netns,
        mtu=network.uplink_mtu(),
        containerd_namespace=names.containerd_namespace,
        runc=find_program(programs.runc) or programs.runc,
        accelerator_kind=record.shape.accelerator_kind,
        accelerators=record.accelerators,
        simulate_accelerators=record.simulated,
        cdi_dirs=settings.cdi_dirs,
        disk_bytes=record.disk_bytes or settings.node_disk_bytes,
        model_link_share=settings.model_link_share,
        layer_bytes=settings.layer_bytes,
        layer_entries=settings.layer_entries,
        copy_disk_bytes=settings.copy_disk_bytes,
        disk_reserve_bytes=settings.disk_reserve_bytes,
        no_new_privileges=settings.no_new_privileges,
        scrub_interval_s=settings.scrub_interval_s,
        scrub_bytes_per_s=settings.scrub_bytes_per_s,
        receiver_socket=str(names.run_dir / "receiver.sock") if record.source_token else "",
        log_level=programs.log_level,
        labels=dict(record.labels),
    )


def _make_folders(names: InstanceNames, config: NodeConfig) -> None:
    names.run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    for folder in (
        names.disk_dir,
        config.mounts_dir,
        config.snapshotter_dir,
        config.layers_dir,
        config.catalog_dir,
        config.models_dir,
        config.logs_dir,
        config.volumes_dir,
        config.agent_dir,
        names.disk_dir / "containerd",
    ):
        folder.mkdir(mode=0o711, exist_ok=True)


def _commands(
    names: InstanceNames,
    config: NodeConfig,
    programs: Programs,
    containerd_version: tuple[int, int, int],
) -> dict[str, list[str]]:
    """In the order of their start: the plugin is there before containerd asks for it."""
    containerd_file = names.disk_dir / "containerd" / "config.toml"
    remap_ids = can_remap_ids(containerd_version, platform.release())
    containerd_file.write_text(
        render_config(
            ContainerdConfig(
                root=names.disk_dir / "containerd" / "root",
                state=names.run_dir / "containerd",
                socket=config.containerd_socket,
                plugin_socket=config.snapshotter_socket,
                plugin_root=config.snapshotter_dir,
                log_level=programs.log_level,
                remap_ids=remap_ids,
            ),
            containerd_version,
        )
    )
    places = {
        "{config}": names.node_file,
        "{socket}": config.snapshotter_socket,
        "{state}": config.snapshotter_dir,
        "{catalog}": config.catalog_dir,
        "{mounts}": config.mounts_dir,
        "{status}": config.snapshotter_status_socket,
        "{namespace}": names.containerd_namespace,
        "{level}": programs.log_level,
        "{holder}": config.holder_socket,
        "{receiver}": config.receiver_file,
    }
    containerd = find_program(programs.containerd) or programs.containerd
    receiving = (
        {HOLDER: HOLDER_COMMAND, RECEIVER: RECEIVER_COMMAND} if config.receiver_socket else {}
    )
    return {
        **{role: [str(places.get(word, word)) for word in receiving[role]] for role in receiving},
        SNAPSHOTTER: [
            *(str(places.get(word, word)) for word in programs.snapshotter),
            *(["--remap-ids"] if remap_ids else []),
        ],
        CONTAINERD: [containerd, "--config", str(containerd_file)],
        AGENT: [str(places.get(word, word)) for word in programs.agent],
    }


def _tail(names: InstanceNames, role: str) -> str:
    try:
        text = (names.logs_dir / f"{role}.log").read_bytes()[-_LOG_TAIL_BYTES:]
    except OSError:
        return "there is no log"
    return text.decode(errors="replace").strip() or "the log is empty"
