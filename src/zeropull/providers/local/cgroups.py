"""Control groups of instances: version 1, version 2 and the hybrid of both.

An instance has `<fleet>/<instance>` with its limits, and below that `node` for its own daemons and
`copies` for the containers: version 2 allows processes only in groups without controlled children.
In version 1 the group is made in *every* hierarchy, since runc makes its own in every one, too, and
removes only the leaf. Sources: the kernel's admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zeropull.errors import Unavailable
from zeropull.linux.mounts import Mount, read_mounts
from zeropull.linux.processes import machine_pids

NODE, COPIES = "node", "copies"
_CPU_PERIOD_US = 100_000
_V2_CONTROLLERS = ("cpu", "memory", "pids", "cpuset", "io")
_V1_CONTROLLERS = (
    "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "net_cls",
    "net_prio", "perf_event", "pids", "rdma", "misc",
)  # fmt: skip
FLEET_PIDS_SHARE = 0.75  # of the machine's tasks; the others are for the machine itself
_RETRY_S = 0.02


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a whole instance: its daemons and all of its containers together."""

    vcpus: float
    memory_bytes: int
    pids: int


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted hierarchy; version 2 and named ones of version 1 have no `controllers`."""

    mount: Path
    version: int
    controllers: frozenset[str] = frozenset()


def find_hierarchies(mounts: list[Mount] | None = None) -> list[Hierarchy]:
    """Every hierarchy below /sys/fs/cgroup, each once."""
    found: dict[Path, Hierarchy] = {}
    for mount in read_mounts() if mounts is None else mounts:
        if Path("/sys/fs/cgroup") not in (mount.target, *mount.target.parents):
            continue
        if mount.type == "cgroup2":
            found[mount.target] = Hierarchy(mount.target, 2)
        elif mount.type == "cgroup":
            controllers = mount.options.intersection(_V1_CONTROLLERS)
            found[mount.target] = Hierarchy(mount.target, 1, controllers)
    return list(found.values())


def cgroup_version(hierarchies: list[Hierarchy]) -> str:
    """ "v1", "v2", "hybrid" (limits by version 1, version 2 beside it) or "none"."""
    versions = {hierarchy.version for hierarchy in hierarchies}
    if versions == {1, 2}:
        return "hybrid"
    return f"v{versions.pop()}" if versions else "none"


def create_instance(hierarchies: list[Hierarchy], name: str, limits: Limits) -> list[Path]:
    """Make the groups and set the limits; idempotent. Returns the `cgroup.procs` of `node`."""
    if not hierarchies:
        raise Unavailable("no cgroup hierarchy is mounted below /sys/fs/cgroup")
    processes = []
    for hierarchy in hierarchies:
        top = hierarchy.mount / name
        for group in (top.parent, top, top / NODE, top / COPIES):
            group.mkdir(exist_ok=True)
            _prepare(hierarchy, group)
        _set_limits(hierarchy, top, limits)
        if (top.parent / "pids.max").exists():
            # All instances together, so that none of them takes the machine's last process.
            fleet_pids = int(machine_pids() * FLEET_PIDS_SHARE)
            (top.parent / "pids.max").write_text(str(fleet_pids))
        processes.append(top / NODE / "cgroup.procs")
    return processes


def processes_of(hierarchies: list[Hierarchy], name: str) -> set[int]:
    """Every process in the group or below it, in any hierarchy."""
    found: set[int] = set()
    for hierarchy in hierarchies:
        for folder, _, _ in os.walk(hierarchy.mount / name):
            with suppress(OSError):
                text = (Path(folder) / "cgroup.procs").read_text()
                found.update(int(line) for line in text.split())
    return found


def kill_all(hierarchies: list[Hierarchy], name: str, *, timeout_s: float = 10.0) -> None:
    """SIGKILL every process of the group until none is left, paused containers too.

    Raises:
        Unavailable: a process outlives SIGKILL, as one that waits for a dead disk does.
    """
    deadline = time.monotonic() + timeout_s
    for hierarchy in hierarchies:
        _thaw(hierarchy, hierarchy.mount / name)
    while pids := processes_of(hierarchies, name):
        for pid in pids:
            if pid > 0:  # 0 = a process of another PID namespace
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with suppress(ChildProcessError, ValueError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            raise Unavailable(f"processes {sorted(pids)} of cgroup {name} do not end")
        time.sleep(_RETRY_S)


def remove(hierarchies: list[Hierarchy], name: str, *, timeout_s: float = 5.0) -> None:
    """Remove the group and everything below it in every hierarchy; idempotent."""
    deadline = time.monotonic() + timeout_s
    for hierarchy in hierarchies:
        for folder, _, _ in os.walk(hierarchy.mount / name, topdown=False):
            _remove_group(Path(folder), deadline)


def remove_if_empty(hierarchies: list[Hierarchy], name: str) -> None:
    """Remove the fleet's own group once the last instance is gone."""
    for hierarchy in hierarchies:
        with suppress(OSError):
            (hierarchy.mount / name).rmdir()


def list_groups(hierarchies: list[Hierarchy], name: str) -> set[str]:
    """Names of the groups directly below `name`, in any hierarchy."""
    found: set[str] = set()
    for hierarchy in hierarchies:
        with suppress(OSError):
            found.update(path.name for path in (hierarchy.mount / name).iterdir() if path.is_dir())
    return found


def _prepare(hierarchy: Hierarchy, group: Path) -> None:
    if hierarchy.version == 2:
        for folder in (group.parent,):
            _enable_controllers(folder)
        return
    if "cpuset" in hierarchy.controllers:
        # A fresh cpuset is empty, and an empty one takes no process.
        for knob in ("cpuset.cpus", "cpuset.mems"):
            if not (group / knob).read_text().strip():
                (group / knob).write_text((group.parent / knob).read_text())


def _enable_controllers(folder: Path) -> None:
    try:
        available = (folder / "cgroup.controllers").read_text().split()
        enabled = (folder / "cgroup.subtree_control").read_text().split()
    except FileNotFoundError:
        return
    for controller in _V2_CONTROLLERS:
        if controller in available and controller not in enabled:
            # One by one: a controller that is refused must not take the others with it.
            with suppress(OSError):
                (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def _set_limits(hierarchy: Hierarchy, group: Path, limits: Limits) -> None:
    quota = max(1000, int(limits.vcpus * _CPU_PERIOD_US))
    if hierarchy.version == 2:
        knobs = {
            "cpu.max": f"{quota} {_CPU_PERIOD_US}",
            "memory.max": str(limits.memory_bytes),
            "pids.max": str(limits.pids),
        }
    else:
        knobs = {
            "cpu.cfs_period_us": str(_CPU_PERIOD_US),
            "cpu.cfs_quota_us": str(quota),
            "memory.limit_in_bytes": str(limits.memory_bytes),
            "pids.max": str(limits.pids),
        }
    for knob, value in knobs.items():
        if (group / knob).exists():
            (group / knob).write_text(value)


def _thaw(hierarchy: Hierarchy, group: Path) -> None:
    knob, value = ("cgroup.freeze", "0") if hierarchy.version == 2 else ("freezer.state", "THAWED")
    for folder, _, _ in os.walk(group):
        with suppress(OSError):
            path = Path(folder) / knob
            if path.exists():
                path.write_text(value)


def _remove_group(group: Path, deadline: float) -> None:
    while True:
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            # A group stays busy for a moment after its last process has gone.
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise Unavailable(f"cgroup {group} cannot be removed: {error.strerror}") from error
            time.sleep(_RETRY_S)
        else:
            return
