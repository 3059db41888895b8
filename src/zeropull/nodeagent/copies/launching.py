"""The second half of a copy's launch, and its end: image, models and assignment become a running
container, and nothing again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

from zeropull.containerd.tasks import TaskExit, TaskOutput
from zeropull.errors import (
    ConfigurationError,
    ContainerError,
    InvalidInput,
    NoCapacity,
    NotFound,
    Unavailable,
    ZeropullError,
)
from zeropull.linux.processes import machine_pids
from zeropull.linux.removal import try_remove_tree
from zeropull.nodeagent.containers import logs, network
from zeropull.nodeagent.containers.address_guard import AddressGuard
from zeropull.nodeagent.containers.containers import (
    ContainerPlan,
    Containers,
    host_limits,
    remove_cgroups,
)
from zeropull.nodeagent.containers.network import (
    CopyNetwork,
    choose_address,
    make_network,
    network_names,
)
from zeropull.nodeagent.containers.oci_spec import (
    BindMount,
    SpecInputs,
    build_spec,
    parse_image_config,
)
from zeropull.nodeagent.containers.rootfs import layer_directories, read_root_file
from zeropull.nodeagent.containers.users import resolve_user
from zeropull.nodeagent.images.ctr_pull import SNAPSHOTTER as OVERLAYFS
from zeropull.nodeagent.images.image_on_node import ImageOnNode
from zeropull.nodeagent.images.start_profiles import StartProfiles
from zeropull.nodeagent.models import ModelOnNode
from zeropull.nodeagent.records import CopyRecord
from zeropull.resources.cdi import apply_cdi, read_specs
from zeropull.resources.node import NodeConfig

MODEL_TARGETS = "/opt/ml/"  # nothing outside is ever mounted over
PARALLEL_STARTS = 8
COPY_PIDS_SHARE = 0.25  # of the tasks that the machine can have, at most
FINISH_S = 30.0  # of a start that is cancelled half-way


class StartedWithout(Exception):
    """Our snapshotter's root file system cannot be had: try containerd's own. `error` says why."""

    def __init__(self, error: ZeropullError) -> None:
        super().__init__(str(error))
        self.error = error


class Launcher:
    """Starts and ends containers of one node. `addresses` names those that copies have now."""

    def __init__(
        self,
        config: NodeConfig,
        containers: Containers,
        profiles: StartProfiles,
        addresses: Callable[[str], Collection[str]],
    ) -> None:
        self.profiles = profiles
        self._containers = containers
        self._config = config
        self._addresses = addresses
        self._host = host_limits()
        self._log_writer = logs.install_log_writer(config.agent_dir / "bin")
        self._reserved: dict[str, str] = {}
        self._guard = AddressGuard()
        self._slots = asyncio.Semaphore(PARALLEL_STARTS)

    async def guard_addresses(self, addresses: Mapping[str, str]) -> None:
        """Hold copies to their own addresses, those that run already (address by copy ID) too."""
        namespace = node_namespace(self._config)
        links = {network_names(namespace, name)[1]: address for name, address in addresses.items()}
        await asyncio.to_thread(self._guard.load, links)

    async def start(
        self,
        record: CopyRecord,
        image: ImageOnNode,
        models: Sequence[ModelOnNode],
        remember: Callable[[str, str], None],
    ) -> str:
        """Start the copy's container; returns the snapshotter it uses. What was left of an earlier
        container goes first.

        Raises:
            StartedWithout: the plugin's root file system could not be made or mounted.
            ImageError, ContainerError, NoCapacity: with a message for people.
        """
        async with self._slots:
            work = asyncio.create_task(self._start_whole(record, image, models, remember))
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                # A half-made container would escape the tear-down that follows a cancellation.
                await asyncio.wait({work}, timeout=FINISH_S)
                raise

    async def _start_whole(
        self,
        record: CopyRecord,
        image: ImageOnNode,
        models: Sequence[ModelOnNode],
        remember: Callable[[str, str], None],
    ) -> str:
        await self.tear_down(record, grace_s=0.0)
        address = self._reserve(record)
        remember(address, image.snapshotter)
        wiring = self._wiring(record.copy_id, address)
        await asyncio.to_thread(self._guard.allow, wiring.link, wiring.address)
        await asyncio.to_thread(make_network, wiring)
        try:
            await self._start(record, image, models, wiring)
        except (Unavailable, NotFound, ContainerError) as error:
            if image.snapshotter != OVERLAYFS and _is_about_root(error):
                raise StartedWithout(error) from error
            raise
        return image.snapshotter

    async def tear_down(self, record: CopyRecord, *, grace_s: float) -> None:
        """Leave nothing of the copy's container: process, task, snapshot, network, cgroups."""
        copy_id = record.copy_id
        self.profiles.ended(copy_id)
        await self._containers.stop(copy_id, grace_s)
        await self._containers.remove(copy_id, record.snapshotter)
        namespace, link = network_names(node_namespace(self._config), copy_id)
        await asyncio.to_thread(network.remove_network, namespace, link)
        await asyncio.to_thread(self._guard.forget, link)
        await asyncio.to_thread(remove_cgroups, self._cgroup(copy_id))
        await asyncio.to_thread(try_remove_tree, self._files(copy_id))
        self._reserved.pop(copy_id, None)

    async def wait(self, copy_id: str) -> TaskExit | None:
        """Until the copy's process ends; None when nobody knows how it ended."""
        return await self._containers.wait(copy_id)

    def last_lines(self, copy_id: str) -> str:
        return logs.last_lines(logs.log_file(self._config.logs_dir, copy_id))

    async def _start(
        self,
        record: CopyRecord,
        image: ImageOnNode,
        models: Sequence[ModelOnNode],
        wiring: CopyNetwork,
    ) -> None:
        copy_id = record.copy_id
        top = image.chain_ids[-1] if image.chain_ids else ""
        root = await self._containers.prepare_root(copy_id, image.snapshotter, top)
        layers = [
            each
            for mount in root
            for each in layer_directories(mount.type, mount.source, mount.options)
        ]
        await self.profiles.record(copy_id, image, layers[1:])
        spec = await asyncio.to_thread(self._spec, record, image, models, wiring, layers)
        log_file = logs.log_file(self._config.logs_dir, copy_id)
        logs.make_log_file(log_file)
        output = TaskOutput.to_program(self._log_writer, folder=str(log_file.parent))
        plan = ContainerPlan(copy_id, image.name, image.snapshotter, output)
        await self._containers.start(plan, spec, root)

    def _spec(
        self,
        record: CopyRecord,
        image: ImageOnNode,
        models: Sequence[ModelOnNode],
        wiring: CopyNetwork,
        layers: list[Path],
    ) -> dict[str, object]:
        copy, node = record.assignment, self._config
        config = parse_image_config(image.config)
        user = resolve_user(
            config.user,
            read_root_file(layers, "/etc/passwd"),
            read_root_file(layers, "/etc/group"),
        )
        hostname = copy.hostname or copy.copy_id[:63].strip("-.")
        limits = copy.limits
        inputs = SpecInputs(
            container_id=copy.copy_id,
            image=config,
            user=user,
            hostname=hostname,
            cgroups_path=self._cgroup(copy.copy_id),
            network_namespace=str(wiring.path),
            environment=copy.environment,
            platform_env=self._platform_env(record),
            mounts=(*self._files_mounts(copy.copy_id, hostname, wiring), *_model_mounts(models)),
            shm_bytes=copy.shm_bytes,
            cpu_cores=_smaller(limits.cpu_cores, node.vcpus),
            memory_bytes=int(_smaller(limits.memory_bytes, node.memory_bytes)),
            pids=min(limits.pids, int(machine_pids() * COPY_PIDS_SHARE)),
            no_new_privileges=node.no_new_privileges,
        )
        spec = build_spec(inputs, self._host)
        devices = [name for name in limits.accelerators if "=" in name]
        if devices:
            try:
                specs = read_specs([Path(each) for each in node.cdi_dirs])
                spec = apply_cdi(spec, specs, devices)
            except (NotFound, ConfigurationError) as error:
                raise NoCapacity(f"accelerators {', '.join(devices)}: {error}") from error
        return spec

    def _platform_env(self, record: CopyRecord) -> dict[str, str]:
        limits = record.assignment.limits
        if limits.simulated_accelerators:
            return {"ZEROPULL_SIMULATED_ACCELERATORS": str(limits.simulated_accelerators)}
        if not limits.accelerators and self._config.accelerators:
            # Images of CUDA would ask a hook for all devices; a copy without any must get none.
            return {"NVIDIA_VISIBLE_DEVICES": "void"}
        return {}

    def _files_mounts(
        self, copy_id: str, hostname: str, wiring: CopyNetwork
    ) -> tuple[BindMount, ...]:
        folder = self._files(copy_id)
        folder.mkdir(parents=True, exist_ok=True)
        hosts = (
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
            f"{wiring.address}\t{hostname}\n"
        )
        (folder / "hosts").write_text(hosts)
        (folder / "hostname").write_text(f"{hostname}\n")
        resolv = self._config.resolv_conf
        (folder / "resolv.conf").write_text(resolv.read_text() if resolv.exists() else "")
        return tuple(
            BindMount(str(folder / name), f"/etc/{name}")
            for name in ("hosts", "hostname", "resolv.conf")
        )

    def _files(self, copy_id: str) -> Path:
        return self._config.agent_dir / "files" / copy_id

    def _cgroup(self, copy_id: str) -> str:
        return f"{self._config.cgroup_parent.rstrip('/')}/{copy_id}"

    def _reserve(self, record: CopyRecord) -> str:
        node = self._config
        others = set(self._addresses(record.copy_id)) | set(self._reserved.values())
        if self.is_here(record.address) and record.address not in others:
            address = record.address
        else:
            address = choose_address(
                node.subnet, node.first_container_host, node.last_container_host, others
            )
        self._reserved[record.copy_id] = address
        return address

    def is_here(self, address: str) -> bool:
        """The address is one of this node's; its network may be another one after a reboot."""
        return bool(address) and ip_address(address) in ip_network(self._config.subnet)

    def _wiring(self, copy_id: str, address: str) -> CopyNetwork:
        node = self._config
        namespace, link = network_names(node_namespace(node), copy_id)
        prefix = int(node.subnet.partition("/")[2])
        return CopyNetwork(namespace, link, address, prefix, node.gateway, node.bridge, node.mtu)


def node_namespace(config: NodeConfig) -> str:
    """The node's own network namespace; a node that is a machine of its own has no named one."""
    return config.netns or f"zp-{config.instance_id}"


def _model_mounts(models: Sequence[ModelOnNode]) -> tuple[BindMount, ...]:
    for model in models:
        if not (model.target + "/").startswith(MODEL_TARGETS) or ".." in model.target.split("/"):
            raise InvalidInput(f"model target {model.target!r} must lie below {MODEL_TARGETS}")
    return tuple(BindMount(str(model.path), model.target) for model in models)


def _smaller(limit: float | None, of_node: float) -> float:
    return of_node if limit is None else min(limit, of_node)


def _is_about_root(error: ZeropullError) -> bool:
    """Unavailable: the plugin does not answer; NotFound: it has lost a layer's snapshot. A
    ContainerError may come from mounting the root."""
    text = str(error)
    return not isinstance(error, ContainerError) or ("mount" in text and "rootfs" in text)
