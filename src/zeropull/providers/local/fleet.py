"""The local fleet's parts on this machine, made and taken away; everything here blocks.

`LocalProvider` calls it in threads, one instance at a time in one thread.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from zeropull.containerd.config import detect_version
from zeropull.errors import NotFound
from zeropull.linux import network_namespaces
from zeropull.linux.processes import machine_pids
from zeropull.providers.local import assembly, dismantling, firewall, network
from zeropull.providers.local.capacity import (
    HostSize,
    check_count,
    plan_accelerators,
    plan_limits,
    plan_rate,
)
from zeropull.providers.local.delivery import (
    ENDPOINT_LABEL,
    NetworkDelivery,
    arriving_volumes,
)
from zeropull.providers.local.names import FleetNames, InstanceNames
from zeropull.providers.local.processes import AGENT, daemon_pid
from zeropull.providers.local.records import (
    InstanceRecord,
    instance_folders,
    new_record,
    read_record,
    write_record,
)
from zeropull.providers.local.spawner import Spawner
from zeropull.providers.local.volumes import attached_volumes
from zeropull.providers.protocol import LaunchRequest, ProvidedInstance
from zeropull.resources.cdi import device_names, read_specs
from zeropull.resources.settings import RUN_ROOT, FleetSettings


class LocalFleet:
    """What instances are made of, read afresh from the machine. Truth is what is there."""

    def __init__(
        self,
        settings: FleetSettings,
        names: FleetNames,
        programs: assembly.Programs,
        delivery: NetworkDelivery | None,
    ) -> None:
        self.ports = set(settings.loopback_ports)
        self.spawner = Spawner()
        self._settings = settings
        self._names = names
        self._programs = programs
        self._delivery = delivery
        self._children: list[subprocess.Popen[bytes]] = []
        self._containerd_version: tuple[int, int, int] | None = None

    def let_go(self) -> None:
        """End nothing but the spawner."""
        self.spawner.close()
        # A Popen that is forgotten while its process runs would warn; a detached one is init's.
        for child in self._children:
            child.poll()
            child.returncode = child.returncode or 0
        self._children.clear()

    def reserve(self, names: InstanceNames, request: LaunchRequest) -> InstanceRecord:
        """The record of the instance, made on the first attempt; accelerators are its own by it."""
        with self._host_lock():
            record = read_record(names)
            if record is not None:
                return record
            others = [self._names.instance(other) for other in instance_folders(self._names)]
            records = [record for other in others if (record := read_record(other)) is not None]
            check_count(len(records), self._settings.max_instances)
            simulate = self._settings.simulate_accelerators
            accelerators = plan_accelerators(
                request.shape,
                self._host_accelerators() if request.shape.accelerators and not simulate else (),
                {device for record in records for device in record.accelerators},
                simulate=simulate,
            )
            record = new_record(
                request, accelerators, simulated=simulate, source_token=self._source_token(request)
            )
            names.disk_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
            write_record(names, record)
            return record

    def _source_token(self, request: LaunchRequest) -> str:
        if self._delivery is None:
            return ""
        return self._delivery.grant(request.instance_id, request.labels[ENDPOINT_LABEL])

    def assemble(self, names: InstanceNames, record: InstanceRecord) -> list[str]:
        """Make or repair every part of the instance; returns the daemons that were started."""
        self._reap()
        if self._containerd_version is None:
            self._containerd_version = detect_version(self._programs.containerd)
        with self._host_lock():
            subnet = assembly.connect_node(
                names,
                self._settings.network,
                rate_bits_per_s=plan_rate(
                    record.shape,
                    limited=self._settings.limit_network,
                    rate_bits_per_s=self._settings.network_bits_per_s,
                ),
                ports=self._effective_ports(),
                blocked=self._settings.blocked_networks,
            )
        started = assembly.start_node(
            names,
            record,
            subnet,
            limits=plan_limits(record.shape, _host_size()),
            settings=self._settings,
            programs=self._programs,
            containerd_version=self._containerd_version,
            spawner=self.spawner,
            delivery=self._delivery,
        )
        self._children += [child for child in started.values() if child is not None]
        return list(started)

    def is_whole(self, names: InstanceNames, record: InstanceRecord) -> bool:
        self._reap()
        return assembly.is_whole(names, record)

    def existing(self, instance_id: str) -> tuple[InstanceNames, InstanceRecord]:
        names = self._names.instance(instance_id)
        record = read_record(names)
        if record is None:
            raise NotFound(f"instance {instance_id} does not exist")
        return names, record

    def describe(self, names: InstanceNames) -> ProvidedInstance:
        record = read_record(names)
        subnet = network.subnet_of_link(names.link)
        return ProvidedInstance(
            instance_id=names.instance_id,
            running=daemon_pid(names, AGENT) is not None,
            address=subnet.address if subnet else None,
            accelerators=record.accelerators if record else (),
            volumes=arriving_volumes(names, tuple(v.generation for v in record.volumes))
            if record is not None and record.source_token
            else attached_volumes(names),
            labels=dict(record.labels) if record else {},
        )

    def list_all(self) -> list[ProvidedInstance]:
        self._reap()
        self.spawner.revive()
        return [
            self.describe(self._names.instance(instance_id))
            for instance_id in instance_folders(self._names)
        ]

    def dismantle(self, names: InstanceNames) -> None:
        if self._delivery is not None:
            self._delivery.grants.revoke(names.instance_id)
        dismantling.dismantle(names)
        self._reap()
        if not dismantling.find_instances(self._names):
            self.close_if_empty()

    def close_if_empty(self) -> None:
        with self._host_lock():
            if not dismantling.find_instances(self._names):
                dismantling.close_fleet(self._names)

    def keep_ports(self, ports: Collection[int]) -> None:
        self.ports = {*ports, *self._settings.loopback_ports}
        if self._delivery is not None:
            self.ports.add(self._delivery.port())  # generations come from there
        self.change_ports(frozenset(self.ports), close=True)

    def change_ports(self, wanted: Collection[int], *, close: bool) -> None:
        with self._host_lock():
            allowed = firewall.allowed_ports(self._names)
            present = [
                names
                for instance_id in instance_folders(self._names)
                if network_namespaces.netns_exists(
                    (names := self._names.instance(instance_id)).netns
                )
            ]
            if present:
                firewall.change_ports(
                    self._names,
                    present,
                    opened=set(wanted) - allowed,
                    closed=allowed - set(wanted) if close else (),
                )

    def _effective_ports(self) -> set[int]:
        """Those of the settings, of this process, and of the process before it."""
        self.ports |= firewall.allowed_ports(self._names)
        if self._delivery is not None:
            self.ports.add(self._delivery.port())
        return self.ports

    def _host_accelerators(self) -> list[str]:
        return device_names(read_specs([Path(folder) for folder in self._settings.cdi_dirs]))

    def _reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]

    @contextmanager
    def _host_lock(self) -> Iterator[None]:
        """One fleet at a time decides about sub-nets and the host's rules."""
        Path(RUN_ROOT).mkdir(mode=0o755, parents=True, exist_ok=True)
        with (Path(RUN_ROOT) / "host.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _host_size() -> HostSize:
    return HostSize(
        vcpus=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        pids=machine_pids(),
    )
