"""Where snapshots lie: the directory of each, and the mount that shows it with its parents."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from zeropull.containerd.snapshots import PARENT_CHAIN_LABEL, TARGET_LABEL, Mount, SnapshotKind
from zeropull.linux.removal import try_remove_tree
from zeropull.snapshotter.id_maps import mapped_root, mapping_options
from zeropull.snapshotter.lowers import Lowers
from zeropull.snapshotter.served_layers import ServedLayers
from zeropull.snapshotter.state import SnapshotRecord, SnapshotState

_OVERLAY_INDEX = Path("/sys/module/overlay/parameters/index")


class Directories:
    """`<state>/snapshots/<id>/fs` and `work`, and the short names of committed ones.

    `maps_ids`: labels of user namespaces become options of the mounts. It goes with the capability
    `remap-ids` in containerd's configuration: without that, containerd has changed the owners in a
    snapshot of its own, and they must not be mapped a second time. `lock` is the snapshotter's.
    """

    def __init__(
        self,
        directory: Path,
        state: SnapshotState,
        lowers: Lowers,
        served: ServedLayers,
        lock: threading.RLock,
        *,
        maps_ids: bool,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._state = state
        self._lowers = lowers
        self._served = served
        self._lock = lock
        self._maps_ids = maps_ids
        self._index_off = ("index=off",) if _OVERLAY_INDEX.exists() else ()

    def content(self, snapshot_id: int) -> Path:
        return self._of(snapshot_id) / "fs"

    def make(self, record: SnapshotRecord) -> None:
        directory = self._of(record.id)
        try_remove_tree(directory)  # of an ID whose transaction never ended
        content = directory / "fs"
        content.mkdir(parents=True)
        directory.chmod(0o700)
        content.chmod(0o755)
        if record.info.kind is SnapshotKind.ACTIVE:
            (directory / "work").mkdir(mode=0o711)
            if is_unpacked_apart(record):
                (directory / "none").mkdir()
        owner = mapped_root(record.info.labels) if self._maps_ids else None
        lineage = self._state.ancestry(record.info.parent)
        if owner is None and lineage and record.info.kind is SnapshotKind.ACTIVE:
            # The root of an overlay has the owner of its upper directory.
            status = self._lower_paths(lineage[0])[0].stat()
            owner = (status.st_uid, status.st_gid)
        if owner is not None:
            os.chown(content, *owner)

    def mounts(self, record: SnapshotRecord) -> list[Mount]:
        """The one mount that shows the snapshot. On a miss it is never read-only: containerd 2.4
        takes that as a sign that the layer is there already.

        Raises:
            Unavailable: a cached layer below it cannot be mounted any more.
        """
        content = self.content(record.id)
        lineage = self._state.ancestry(record.info.parent)
        lowers = [str(path) for each in lineage for path in self._lower_paths(each)]
        mapping = self._mapping(record.info.labels)
        if record.info.kind is SnapshotKind.ACTIVE:
            if is_unpacked_apart(record):
                lowers = [str(content.parent / "none")]
            if not lowers:
                return [Mount("bind", str(content), (*mapping, "rw", "rbind"))]
            upper = (f"workdir={content.parent / 'work'}", f"upperdir={content}")
            return [self._overlay(*mapping, *upper, f"lowerdir={':'.join(lowers)}")]
        if len(lowers) > 1:
            return [self._overlay(*mapping, f"lowerdir={':'.join(lowers)}")]
        return [Mount("bind", lowers[0] if lowers else str(content), (*mapping, "ro", "rbind"))]

    def remove(self, snapshot_id: int) -> None:
        try_remove_tree(self._of(snapshot_id))

    def remove_strays(self) -> int:
        """Directories without a row, which a kill left behind; how many there were."""
        known = {str(record.id) for record in self._state.all()}
        strays = [each for each in self._directory.iterdir() if each.name not in known]
        for stray in strays:
            try_remove_tree(stray)
        return len(strays)

    def _lower_paths(self, record: SnapshotRecord) -> list[Path]:
        """The short paths of a committed snapshot, the uppermost first."""
        if record.layer is not None or record.chain:
            return self._served.ensure_mounted(record)
        name = str(record.id)
        if not self._lowers.is_ready(name):
            with self._lock:
                self._lowers.bind(name, self.content(record.id))
        return [self._lowers.path(name)]

    def _mapping(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        return mapping_options(labels) if self._maps_ids else ()

    def _overlay(self, *options: str) -> Mount:
        return Mount("overlay", "overlay", (*self._index_off, *options))

    def _of(self, snapshot_id: int) -> Path:
        return self._directory / str(snapshot_id)


def is_unpacked_apart(record: SnapshotRecord) -> bool:
    """Whether containerd unpacks this layer beside the layers below it (its capability `rebase`)
    and names the parent at Commit only.

    Such a layer is answered with an overlay over nothing: containerd then writes whiteouts as
    overlayfs has them. In a plain directory it would carry them out, and lose them.
    """
    labels = record.info.labels
    return not record.info.parent and TARGET_LABEL in labels and PARENT_CHAIN_LABEL in labels
