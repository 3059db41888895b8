"""Cache volumes: generation directories, bound read-only into the node's disk folder."""

from __future__ import annotations

import errno
from pathlib import Path

from zeropull.errors import Conflict, NotFound
from zeropull.linux.mounts import bind_read_only, mounts_below, unmount
from zeropull.providers.local.names import InstanceNames


def attach_volume(names: InstanceNames, generation: int, source: Path) -> Path:
    """Bind the generation read-only; one that a crash has left writable is bound again.

    Raises:
        NotFound: the generation's directory is not there.
    """
    target = names.volumes_dir / str(generation)
    if not source.is_dir():
        raise NotFound(f"generation {generation} is not at {source}")
    for mount in mounts_below(target):
        if mount.target == target and "ro" in mount.options:
            return target
        unmount(mount.target)
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    bind_read_only(source, target)
    return target


def detach_volume(names: InstanceNames, generation: int) -> None:
    """Unbind the generation. Idempotent.

    Raises:
        Conflict: a mount or an open file of the node still uses it.
    """
    target = names.volumes_dir / str(generation)
    try:
        for mount in mounts_below(target):
            unmount(mount.target)
        target.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise Conflict(f"generation {generation} is still in use on {names.instance_id}") from error


def attached_volumes(names: InstanceNames) -> dict[int, str]:
    """Path of every generation that is mounted now."""
    return {
        int(mount.target.name): str(mount.target)
        for mount in mounts_below(names.volumes_dir)
        if mount.target.parent == names.volumes_dir and mount.target.name.isdigit()
    }
