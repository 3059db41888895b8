"""User namespaces: what a snapshot's labels say about it, as mount options and as an owner.

containerd writes the mappings of a pod into two labels, each a list `container:host:size` with
commas (containerd, core/snapshots/snapshotter.go). It maps the lower directories of an overlay
itself when it finds `uidmap=` and `gidmap=` among the options (core/mount/mount_linux.go).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from zeropull.errors import InvalidInput

UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"
_RANGES = re.compile(r"\d{1,10}:\d{1,10}:\d{1,10}(,\d{1,10}:\d{1,10}:\d{1,10})*")


def mapping_options(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Options of the mount; () where the snapshot is not for a user namespace.

    Raises:
        InvalidInput: only one of the two labels is there, or one is no mapping.
    """
    uids, gids = labels.get(UID_LABEL, ""), labels.get(GID_LABEL, "")
    if not uids and not gids:
        return ()
    for label, value in ((UID_LABEL, uids), (GID_LABEL, gids)):
        if not _RANGES.fullmatch(value):
            raise InvalidInput(
                f"label {label} is {value!r}, expected container:host:size, with commas between"
            )
    return (f"uidmap={uids}", f"gidmap={gids}")


def mapped_root(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """User and group on the host of the namespace's root; None without a mapping.

    Raises:
        InvalidInput: as `mapping_options`, or ID 0 is not mapped: the container would have no root.
    """
    if not mapping_options(labels):
        return None
    return _host_id(UID_LABEL, labels[UID_LABEL]), _host_id(GID_LABEL, labels[GID_LABEL])


def _host_id(label: str, ranges: str) -> int:
    for each in ranges.split(","):
        inside, outside, size = map(int, each.split(":"))
        if inside == 0 and size > 0:
            return outside
    raise InvalidInput(f"label {label} is {ranges!r}: it maps no ID to 0, the container's root")
