"""The local fleet: instances as nodes of their own on this machine."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
from collections.abc import Collection, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from zeropull.containerd.config import detect_version
from zeropull.errors import InvalidInput, NoCapacity, NotFound
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
    volume_folder,
)
from zeropull.providers.local.disk import collect_directory, read_bounded
from zeropull.providers.local.names import INSTANCE_ID, FleetNames, InstanceNames
from zeropull.providers.local.processes import AGENT, daemon_pid
from zeropull.providers.local.records import (
    InstanceRecord,
    instance_folders,
    new_record,
    read_record,
    write_record,
)
from zeropull.providers.local.spawner import Spawner
from zeropull.providers.local.volumes import attach_volume, attached_volumes, detach_volume
from zeropull.providers.protocol import LaunchRequest, ProvidedInstance, Volume
from zeropull.resources.cdi import device_names, read_specs
from zeropull.resources.settings import RUN_ROOT, FleetSettings
from zeropull.stopping import run_stoppable, run_to_end
from zeropull.telemetry.logs import get_logger

_READY_TIMEOUT_S = 30.0
_READY_POLL_S = 0.02
PROFILE_BYTES_MAX = 8 << 20
P = ParamSpec("P")
T = TypeVar("T")
_log = get_logger(__name__)


class LocalProvider:
    """Implements `zeropull.providers.protocol.Provider` on this machine; needs root.

    `agent_command` and `snapshotter_command` replace the daemons' command lines; `{config}`, and
    for the snapshotter `{socket}`, `{state}`, `{catalog}`, `{mounts}`, `{namespace}` and
    `{status}`, are filled in.
    """

    def __init__(
        self,
        settings: FleetSettings,
        state_dir: Path,
        run_dir: Path,
        *,
        agent_command: Sequence[str] | None = None,
        snapshotter_command: Sequence[str] | None = None,
        log_level: str = "info",
        delivery: NetworkDelivery | None = None,
    ) -> None:
        self._settings = settings
        self._names = FleetNames(state_dir, run_dir)
        self._programs = assembly.Programs(
            containerd=settings.containerd,
            runc=settings.runc,
            snapshotter=tuple(snapshotter_command or assembly.SNAPSHOTTER_COMMAND),
            agent=tuple(agent_command or assembly.AGENT_COMMAND),
            log_level=log_level,
        )
        self._delivery = delivery
        self._ports = set(settings.loopback_ports)
        # Weak: a lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._children: list[subprocess.Popen[bytes]] = []
        self.spawner = Spawner()
        self._containerd_version: tuple[int, int, int] | None = None

    async def launch(self, request: LaunchRequest) -> ProvidedInstance:
        """Start the instance; returns when its node agent and containerd run. Idempotent.

        Raises:
            NoCapacity: with the arithmetic; nothing is left behind.
            Unavailable: containerd does not start; the message has the end of its log. What was
                made so far stays for another attempt, or for terminate.
        """
        if not INSTANCE_ID.match(request.instance_id):
            raise InvalidInput(f"not an instance id: {request.instance_id!r}")
        names = self._names.instance(request.instance_id)
        async with self._lock(request.instance_id):
            record = await run_to_end(self._reserve, names, request)
            try:
                await run_to_end(self._assemble, names, record)
            except NoCapacity:
                await run_to_end(self._dismantle, names)
                raise
            await self._wait_until_ready(names)
            _log.info("instance launched", instance_id=names.instance_id, type=record.shape.name)
            return await run_to_end(self._describe, names)

    async def terminate(self, instance_id: str) -> None:
        """End everything of the instance; returns when nothing of it is left. Idempotent.

        Raises:
            Unavailable, Conflict: something cannot be removed yet; call again.
        """
        async with self._lock(instance_id):
            await run_to_end(self._dismantle, self._names.instance(instance_id))
            _log.info("instance terminated", instance_id=instance_id)

    async def list_instances(self) -> list[ProvidedInstance]:
        """Every instance of which a disk folder is there, read afresh."""
        return await asyncio.to_thread(self._list)

    async def attach(self, instance_id: str, volume: Volume) -> str:
        """Attach one more generation read-only. Idempotent.

        Raises:
            NotFound: no such instance, or no such generation directory.
        """
        async with self._lock(instance_id):
            names, record = await run_to_end(self._existing, instance_id)
            if record.source_token:  # its agent has it brought
                path = volume_folder(names, volume.generation)
            else:
                path = await run_to_end(attach_volume, names, volume.generation, volume.path)
            await run_to_end(write_record, names, record.with_volume(volume))
            return str(path)

    async def detach(self, instance_id: str, generation: int) -> None:
        """Take a generation away. Idempotent.

        Raises:
            Conflict: something on the node still uses it; nothing was changed.
        """
        async with self._lock(instance_id):
            names = self._names.instance(instance_id)
            record = await run_to_end(read_record, names)
            if record is None or not record.source_token:
                await run_to_end(detach_volume, names, generation)
            if record is not None:
                await run_to_end(write_record, names, record.without_volume(generation))

    async def collect_layer(self, instance_id: str, chain_id: str, into: Path) -> None:
        """Bring one published layer directory of the node to the new directory `into`. Cancelled,
        it ends soon and leaves nothing of it."""
        folder = self._names.instance(instance_id).layers_dir / chain_id.removeprefix("sha256:")
        await run_stoppable(lambda stop: collect_directory(folder, into, stop))

    async def collect_profile(self, instance_id: str, manifest_digest: str) -> bytes | None:
        """The image's start profile if the node has recorded one; not checked in any way."""
        folder = self._names.instance(instance_id).profiles_dir
        path = folder / f"{manifest_digest.removeprefix('sha256:')}.json"
        return await asyncio.to_thread(read_bounded, path, PROFILE_BYTES_MAX)

    async def heal(self, instance_id: str) -> bool:
        """Start again whatever of the instance has died, its network and mounts after a reboot too.

        Raises:
            NotFound: no such instance.
        """
        async with self._lock(instance_id):
            names, record = await run_to_end(self._existing, instance_id)
            if await run_to_end(self._is_whole, names, record):
                return False
            started = await run_to_end(self._assemble, names, record)
            if started:
                _log.warning("daemons started again", instance_id=instance_id, daemons=started)
            return bool(started)

    async def allow_loopback_port(self, port: int) -> None:
        """Let the nodes, those to come too, reach this port of the host's 127.0.0.1. Idempotent."""
        if not 0 < port < 65536:
            raise InvalidInput(f"not a TCP port: {port}")
        self._ports.add(port)
        await asyncio.to_thread(self._change_ports, {port}, close=False)

    async def keep_loopback_ports(self, ports: Collection[int]) -> None:
        """Close every port of the host's 127.0.0.1 but these and those of the settings."""
        await asyncio.to_thread(self._keep_ports, ports)

    async def sweep(self, known: Collection[str]) -> list[str]:
        """End what is left of instances of this state directory that are not among `known`.

        Returns their ids. Other fleets on the host are not touched.

        Raises:
            Unavailable, Conflict: of the first one that cannot be ended yet; the others are.
        """
        found = await asyncio.to_thread(dismantling.find_instances, self._names)
        unknown = sorted(found - set(known))
        await end_all(map(self.terminate, unknown))
        if not found - set(unknown):
            await asyncio.to_thread(self._close_fleet)
        return unknown

    def prepare(self) -> None:
        """Make later launches faster; returns at once. Who launches once does without."""
        self.spawner.start()

    async def close(self) -> None:
        """Let go without ending anything."""
        await asyncio.to_thread(self.spawner.close)
        # A Popen that is forgotten while its process runs would warn; a detached one is init's.
        for child in self._children:
            child.poll()
            child.returncode = child.returncode or 0
        self._children.clear()

    def _lock(self, instance_id: str) -> asyncio.Lock:
        return self._locks.setdefault(instance_id, asyncio.Lock())

    def _reserve(self, names: InstanceNames, request: LaunchRequest) -> InstanceRecord:
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

    def _host_accelerators(self) -> list[str]:
        return device_names(read_specs([Path(folder) for folder in self._settings.cdi_dirs]))

    def _source_token(self, request: LaunchRequest) -> str:
        if self._delivery is None:
            return ""
        return self._delivery.grant(request.instance_id, request.labels[ENDPOINT_LABEL])

    def _is_whole(self, names: InstanceNames, record: InstanceRecord) -> bool:
        self._reap()
        return assembly.is_whole(names, record)

    def _assemble(self, names: InstanceNames, record: InstanceRecord) -> list[str]:
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

    async def _wait_until_ready(self, names: InstanceNames) -> None:
        deadline = asyncio.get_running_loop().time() + _READY_TIMEOUT_S
        while not assembly.is_ready(names):
            assembly.check_alive(names)
            if asyncio.get_running_loop().time() > deadline:
                raise assembly.not_ready(names, _READY_TIMEOUT_S)
            await asyncio.sleep(_READY_POLL_S)

    def _dismantle(self, names: InstanceNames) -> None:
        if self._delivery is not None:
            self._delivery.grants.revoke(names.instance_id)
        dismantling.dismantle(names)
        self._reap()
        if not dismantling.find_instances(self._names):
            self._close_fleet()

    def _close_fleet(self) -> None:
        with self._host_lock():
            if not dismantling.find_instances(self._names):
                dismantling.close_fleet(self._names)

    def _list(self) -> list[ProvidedInstance]:
        self._reap()
        self.spawner.revive()
        return [
            self._describe(self._names.instance(instance_id))
            for instance_id in instance_folders(self._names)
        ]

    def _describe(self, names: InstanceNames) -> ProvidedInstance:
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

    def _existing(self, instance_id: str) -> tuple[InstanceNames, InstanceRecord]:
        names = self._names.instance(instance_id)
        record = read_record(names)
        if record is None:
            raise NotFound(f"instance {instance_id} does not exist")
        return names, record

    def _effective_ports(self) -> set[int]:
        """Those of the settings, of this process, and of the process before it."""
        self._ports |= firewall.allowed_ports(self._names)
        if self._delivery is not None:
            self._ports.add(self._delivery.port())
        return self._ports

    def _keep_ports(self, ports: Collection[int]) -> None:
        self._ports = {*ports, *self._settings.loopback_ports}
        if self._delivery is not None:
            self._ports.add(self._delivery.port())  # generations come from there
        self._change_ports(frozenset(self._ports), close=True)

    def _change_ports(self, wanted: Collection[int], *, close: bool) -> None:
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

    def _reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]

    @contextmanager
    def _host_lock(self) -> Iterator[None]:
        """One fleet at a time decides about sub-nets and the host's rules."""
        Path(RUN_ROOT).mkdir(mode=0o755, parents=True, exist_ok=True)
        with (Path(RUN_ROOT) / "host.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


async def end_all(ends: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; one that fails keeps none of the others from its end.

    Raises:
        The first failure, after all have ended.
    """
    for outcome in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _host_size() -> HostSize:
    return HostSize(
        vcpus=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        pids=machine_pids(),
    )
