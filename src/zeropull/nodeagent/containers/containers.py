"""One copy's container in containerd: made, watched, found again after a restart, and taken away.

The container's ID is the copy's ID, and it carries the label `zeropull.copy`; both are how an agent
that was killed finds it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import resource
import secrets
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropull.containerd.client import ContainerdClient
from zeropull.containerd.containers import Container, RuncOptions
from zeropull.containerd.snapshots import Mount
from zeropull.containerd.tasks import Task, TaskExit, TaskOutput, TaskStatus
from zeropull.errors import AlreadyExists, Conflict, NotFound, Unavailable
from zeropull.linux.processes import CAP_SYS_RESOURCE, has_capability
from zeropull.nodeagent.containers.oci_spec import HostLimits
from zeropull.nodeagent.containers.rootfs import layer_directories

COPY_LABEL = "zeropull.copy"
GC_ROOT_LABEL = "containerd.io/gc.root"
_KILL_TIMEOUT_S = 10.0
_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """Everything but the spec that a container is made from."""

    copy_id: str
    image_name: str
    snapshotter: str
    output: TaskOutput


class Containers:
    """The containers of this node, in its namespace of containerd."""

    def __init__(self, client: ContainerdClient, *, runc: str) -> None:
        self._client = client
        self._runc = RuncOptions(binary_name="" if runc == "runc" else runc)

    async def prepare_root(self, copy_id: str, snapshotter: str, top_chain_id: str) -> list[Mount]:
        """The writable root file system over the image's layers, made anew if it is there.

        Raises:
            Unavailable: the snapshotter does not answer.
            NotFound: the image's layers are not there.
        """
        snapshots = self._client.snapshots(snapshotter)
        labels = {GC_ROOT_LABEL: "yes"}
        with contextlib.suppress(NotFound):
            await snapshots.remove(copy_id)
        return await snapshots.prepare(copy_id, top_chain_id, labels)

    async def layers_of(self, snapshotter: str, top_chain_id: str) -> list[Path]:
        """Where an image's layers are mounted, the uppermost first; raises as `prepare_root`."""
        snapshots = self._client.snapshots(snapshotter)
        key = f"zeropull-view-{secrets.token_hex(8)}"
        mounts = await snapshots.view(key, top_chain_id)
        with contextlib.suppress(NotFound):
            await snapshots.remove(key)
        return [
            directory
            for mount in mounts
            for directory in layer_directories(mount.type, mount.source, mount.options)
        ]

    async def writable_layer(self, copy_id: str, snapshotter: str) -> Path | None:
        """Where the copy's container writes its own files; None when it has no root."""
        try:
            mounts = await self._client.snapshots(snapshotter).mounts(copy_id)
        except NotFound:
            return None
        options = (option.partition("=") for mount in mounts for option in mount.options)
        return next((Path(value) for name, _, value in options if name == "upperdir"), None)

    async def start(self, plan: ContainerPlan, spec: dict[str, Any], root: list[Mount]) -> int:
        """Create container and task and let it go; returns the PID.

        Raises:
            ContainerError: runc or the mount of the root file system failed; nothing is cleaned up.
        """
        await self._client.containers.create(
            Container(
                id=plan.copy_id,
                image=plan.image_name,
                snapshotter=plan.snapshotter,
                snapshot_key=plan.copy_id,
                spec=spec,
                labels={COPY_LABEL: plan.copy_id},
                runc=self._runc,
            )
        )
        await self._client.tasks.create(plan.copy_id, root, plan.output)
        return await self._client.tasks.start(plan.copy_id)

    async def known(self) -> list[str]:
        """Copies that have a container, running or not."""
        found = await self._client.containers.list(f"labels.{_quoted(COPY_LABEL)}")
        return [each.labels[COPY_LABEL] for each in found if COPY_LABEL in each.labels]

    async def running(self) -> list[str]:
        """Copies whose process lives."""
        alive = (TaskStatus.RUNNING, TaskStatus.PAUSED, TaskStatus.PAUSING)
        return [
            task.container_id for task in await self._client.tasks.list() if task.status in alive
        ]

    async def task(self, copy_id: str) -> Task | None:
        try:
            return await self._client.tasks.get(copy_id)
        except NotFound:
            return None

    async def wait(self, copy_id: str) -> TaskExit | None:
        """Until the process ends, over restarts of containerd; None when the task is gone."""
        while True:
            try:
                return await self._client.tasks.wait(copy_id)
            except NotFound:
                return None
            except Unavailable:
                await asyncio.sleep(_RETRY_S)

    async def stop(self, copy_id: str, grace_s: float) -> None:
        """SIGTERM, `grace_s`, SIGKILL; returns once the process has ended. Idempotent."""
        for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILL_TIMEOUT_S)):
            task = await self.task(copy_id)
            if task is None or task.status in (TaskStatus.STOPPED, TaskStatus.UNKNOWN):
                return
            if task.status is TaskStatus.CREATED:
                number = signal.SIGKILL
            with contextlib.suppress(NotFound):
                await self._client.tasks.kill(
                    copy_id, number, every_process=number is signal.SIGKILL
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.wait(copy_id)
                    return

    async def remove(self, copy_id: str, snapshotter: str) -> None:
        """Delete task, container and snapshot, in this order. Idempotent.

        Raises:
            Conflict: the process still lives.
            Unavailable: containerd or the snapshotter does not answer.
        """
        with contextlib.suppress(NotFound):
            await self._client.tasks.delete(copy_id)
        with contextlib.suppress(NotFound):
            snapshotter = (await self._client.containers.get(copy_id)).snapshotter or snapshotter
            await self._client.containers.delete(copy_id)
        if snapshotter:
            with contextlib.suppress(NotFound):
                await self._client.snapshots(snapshotter).remove(copy_id)

    async def kill_and_remove(self, copy_id: str, snapshotter: str) -> None:
        """For a container of which nothing is wanted any more."""
        await self.stop(copy_id, 0.0)
        with contextlib.suppress(Conflict, AlreadyExists):
            await self.remove(copy_id, snapshotter)


def host_limits() -> HostLimits:
    """What this process inherited and may hand on."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    nr_open = int(Path("/proc/sys/fs/nr_open").read_text())
    return HostLimits(
        nofile_hard=nr_open if hard == resource.RLIM_INFINITY else min(hard, nr_open),
        oom_score_adj=int(Path("/proc/self/oom_score_adj").read_text()),
        machine=platform.machine(),
        cgroup_v2=Path("/sys/fs/cgroup/cgroup.controllers").exists(),
        may_exceed=has_capability(CAP_SYS_RESOURCE),
    )


def remove_cgroups(cgroups_path: str, root: Path = Path("/sys/fs/cgroup")) -> None:
    """Remove the empty groups of one container in every hierarchy; runc leaves some behind."""
    relative = cgroups_path.lstrip("/")
    hierarchies = [root] if (root / "cgroup.controllers").exists() else list(root.iterdir())
    for hierarchy in hierarchies:
        group = hierarchy / relative
        if not group.is_dir() or hierarchy.is_symlink():
            continue
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def _quoted(label: str) -> str:
    return f'"{label}"'
