"""The local fleet: instances as nodes of their own on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from zeropull.errors import InvalidInput, NoCapacity
from zeropull.providers.local import assembly, dismantling
from zeropull.providers.local.delivery import (
    NetworkDelivery,
    volume_folder,
)
from zeropull.providers.local.disk import collect_directory, read_bounded
from zeropull.providers.local.fleet import LocalFleet
from zeropull.providers.local.names import INSTANCE_ID, FleetNames, InstanceNames
from zeropull.providers.local.records import (
    read_record,
    write_record,
)
from zeropull.providers.local.spawner import Spawner
from zeropull.providers.local.volumes import attach_volume, detach_volume
from zeropull.providers.protocol import LaunchRequest, ProvidedInstance, Volume
from zeropull.resources.settings import FleetSettings
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
        self._names = FleetNames(state_dir, run_dir)
        programs = assembly.Programs(
            containerd=settings.containerd,
            runc=settings.runc,
            snapshotter=tuple(snapshotter_command or assembly.SNAPSHOTTER_COMMAND),
            agent=tuple(agent_command or assembly.AGENT_COMMAND),
            log_level=log_level,
        )
        self._fleet = LocalFleet(settings, self._names, programs, delivery)
        # Weak: a lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

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
            record = await run_to_end(self._fleet.reserve, names, request)
            try:
                await run_to_end(self._fleet.assemble, names, record)
            except NoCapacity:
                await run_to_end(self._fleet.dismantle, names)
                raise
            await self._wait_until_ready(names)
            _log.info("instance launched", instance_id=names.instance_id, type=record.shape.name)
            return await run_to_end(self._fleet.describe, names)

    async def terminate(self, instance_id: str) -> None:
        """End everything of the instance; returns when nothing of it is left. Idempotent.

        Raises:
            Unavailable, Conflict: something cannot be removed yet; call again.
        """
        async with self._lock(instance_id):
            await run_to_end(self._fleet.dismantle, self._names.instance(instance_id))
            _log.info("instance terminated", instance_id=instance_id)

    async def list_instances(self) -> list[ProvidedInstance]:
        """Every instance of which a disk folder is there, read afresh."""
        return await asyncio.to_thread(self._fleet.list_all)

    async def attach(self, instance_id: str, volume: Volume) -> str:
        """Attach one more generation read-only. Idempotent.

        Raises:
            NotFound: no such instance, or no such generation directory.
        """
        async with self._lock(instance_id):
            names, record = await run_to_end(self._fleet.existing, instance_id)
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
            names, record = await run_to_end(self._fleet.existing, instance_id)
            if await run_to_end(self._fleet.is_whole, names, record):
                return False
            started = await run_to_end(self._fleet.assemble, names, record)
            if started:
                _log.warning("daemons started again", instance_id=instance_id, daemons=started)
            return bool(started)

    async def allow_loopback_port(self, port: int) -> None:
        """Let the nodes, those to come too, reach this port of the host's 127.0.0.1. Idempotent."""
        if not 0 < port < 65536:
            raise InvalidInput(f"not a TCP port: {port}")
        self._fleet.ports.add(port)
        await asyncio.to_thread(self._fleet.change_ports, {port}, close=False)

    async def keep_loopback_ports(self, ports: Collection[int]) -> None:
        """Close every port of the host's 127.0.0.1 but these and those of the settings."""
        await asyncio.to_thread(self._fleet.keep_ports, ports)

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
            await asyncio.to_thread(self._fleet.close_if_empty)
        return unknown

    def prepare(self) -> None:
        """Make later launches faster; returns at once. Who launches once does without."""
        self.spawner.start()

    async def close(self) -> None:
        """Let go without ending anything."""
        await asyncio.to_thread(self._fleet.let_go)

    @property
    def spawner(self) -> Spawner:
        """Of the daemons of later launches."""
        return self._fleet.spawner

    def _lock(self, instance_id: str) -> asyncio.Lock:
        return self._locks.setdefault(instance_id, asyncio.Lock())

    async def _wait_until_ready(self, names: InstanceNames) -> None:
        deadline = asyncio.get_running_loop().time() + _READY_TIMEOUT_S
        while not assembly.is_ready(names):
            assembly.check_alive(names)
            if asyncio.get_running_loop().time() > deadline:
                raise assembly.not_ready(names, _READY_TIMEOUT_S)
            await asyncio.sleep(_READY_POLL_S)


async def end_all(ends: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; one that fails keeps none of the others from its end.

    Raises:
        The first failure, after all have ended.
    """
    for outcome in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
