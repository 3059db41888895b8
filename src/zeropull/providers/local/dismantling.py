"""Ending an instance from whatever state it is in, and finding what is left of any.

The order matters: sockets of shims are known as long as their processes live; nothing can be
unmounted while processes use it; the disk folder goes last, since it is what makes an instance
listed, so that a half-finished end is found and finished.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from zeropull.errors import Unavailable
from zeropull.linux import network_namespaces
from zeropull.linux.mounts import unmount_below
from zeropull.linux.removal import try_remove_tree
from zeropull.linux.tracefs import remove_instances
from zeropull.providers.local import cgroups, firewall, network
from zeropull.providers.local.disk import remove_folder
from zeropull.providers.local.names import (
    INSTANCE_ID,
    RUNC_DIR,
    SHIM_SOCKETS_DIR,
    FleetNames,
    InstanceNames,
)
from zeropull.providers.local.processes import (
    AGENT,
    CONTAINERD,
    kill_daemon,
    processes_in_netns,
    unix_sockets_in_netns,
)
from zeropull.providers.local.records import instance_folders, run_folders

_KILL_TIMEOUT_S = 10.0
_POLL_S = 0.02


def dismantle(names: InstanceNames) -> None:
    """End everything of one instance. Idempotent.

    Raises:
        Unavailable: a process outlives SIGKILL, or a cgroup stays busy.
        Conflict: something is still mounted below the disk folder.
    """
    hierarchies = cgroups.find_hierarchies()
    kill_daemon(names, AGENT)  # first, since it would start containers again
    for socket in _shim_sockets(names):
        socket.unlink(missing_ok=True)
    kill_daemon(names, CONTAINERD)
    # Containers before their shims, which reap them: an orphan's zombie would wait for init.
    cgroups.kill_all(hierarchies, f"{names.cgroup}/{cgroups.COPIES}")
    cgroups.kill_all(hierarchies, names.cgroup)
    _kill_in_netns(names)
    for folder in (names.run_dir, names.disk_dir):
        unmount_below(folder)
    cgroups.remove(hierarchies, names.cgroup)
    try_remove_tree(RUNC_DIR / names.containerd_namespace)
    for namespace in network_namespaces.list_netns(names.copy_netns_prefix):
        network_namespaces.delete_netns(namespace)
    network.delete_link(names.link)
    network_namespaces.delete_netns(names.netns)
    remove_instances(names.trace_prefix)
    remove_folder(names.run_dir)
    remove_folder(names.disk_dir)


def find_instances(names: FleetNames) -> set[str]:
    """Ids of all instances of this fleet of which anything is left."""
    groups = cgroups.list_groups(cgroups.find_hierarchies(), names.cgroup)
    spaces = (
        # A copy's namespace carries a further part behind the instance's id.
        "-".join(name.removeprefix(names.netns_prefix).split("-")[:2])
        for name in network_namespaces.list_netns(names.netns_prefix)
    )
    found = {*instance_folders(names), *run_folders(names), *groups, *spaces}
    return {instance_id for instance_id in found if INSTANCE_ID.match(instance_id)}


def close_fleet(names: FleetNames) -> None:
    """Remove what all instances of the fleet share, after the last one is gone. Idempotent."""
    for link in network.list_links(names.link_prefix):
        network.delete_link(link)
    firewall.close_host(names)
    cgroups.remove_if_empty(cgroups.find_hierarchies(), names.cgroup)
    network_namespaces.release_directory()


def _shim_sockets(names: InstanceNames) -> set[Path]:
    """Sockets of living shims, by their namespace, and of dead ones, by their bundles."""
    found = unix_sockets_in_netns(names.netns, SHIM_SOCKETS_DIR)
    for file in names.run_dir.glob("containerd/io.containerd.runtime.v2.task/*/*/address"):
        with suppress(OSError):
            path = Path(file.read_text().strip().removeprefix("unix://"))
            if path.parent == SHIM_SOCKETS_DIR:
                found.add(path)
    return found


def _kill_in_netns(names: InstanceNames) -> None:
    """Whatever entered a namespace without being in the cgroup, for example a debugging shell."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    spaces = [names.netns, *network_namespaces.list_netns(names.copy_netns_prefix)]
    while pids := set().union(*map(processes_in_netns, spaces)) - {os.getpid()}:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise Unavailable(f"processes {sorted(pids)} of {names.instance_id} do not end")
        time.sleep(_POLL_S)
