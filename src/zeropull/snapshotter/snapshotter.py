"""The snapshots themselves: what each call of containerd does to rows, directories and mounts.

A layer that the catalog has is answered at Prepare (see `served`), and AlreadyExists tells
containerd that nothing is to be fetched. Every other snapshot is an ordinary overlay directory.
Contract: containerd, docs/snapshotters/remote-snapshotter.md and core/snapshots/snapshotter.go.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from zeropull.containerd.snapshots import (
    TARGET_LABEL,
    WHOLE_IMAGE_LABEL,
    Mount,
    SnapshotInfo,
    SnapshotKind,
    SnapshotUsage,
)
from zeropull.errors import (
    AccessDenied,
    AlreadyExists,
    Conflict,
    InvalidInput,
)
from zeropull.snapshotter.catalog import Catalog
from zeropull.snapshotter.counters import Count, Counters
from zeropull.snapshotter.filters import parse_filters
from zeropull.snapshotter.lowers import Lowers
from zeropull.snapshotter.served_layers import ServedLayers, shared_name
from zeropull.snapshotter.state import SnapshotRecord, SnapshotState
from zeropull.snapshotter.usage import measure_usage
from zeropull.telemetry.logs import get_logger

_log = get_logger(__name__)

_NAMESPACE_FACT = "namespace"
_TARGET_FILTER = re.compile(rf'labels\."{re.escape(TARGET_LABEL)}"==(sha256:[0-9a-f]{{64}})(?:,|$)')
_OVERLAY_INDEX = Path("/sys/module/overlay/parameters/index")


class Snapshotter:
    """All snapshots of one node, for one containerd namespace.

    containerd's namespaces do not isolate: it would let one tenant find a snapshot that another
    one made. So every key of another namespace is refused; `namespace` None binds this state to
    the first namespace that asks, for good. Methods may be called from any thread.
    """

    def __init__(
        self,
        state_dir: Path,
        catalog: Catalog,
        lowers: Lowers,
        counters: Counters,
        now_ns: Callable[[], int],
        *,
        namespace: str | None = None,
    ) -> None:
        self._snapshots_dir = state_dir / "snapshots"
        self._snapshots_dir.mkdir(parents=True, exist_ok=True)
        self._state = SnapshotState(state_dir / "snapshots.db")
        self._lowers = lowers
        self._counters = counters
        self._now_ns = now_ns
        self._namespace = namespace or self._state.fact(_NAMESPACE_FACT)
        self._index_off = ("index=off",) if _OVERLAY_INDEX.exists() else ()
        # One change at a time: rows, directories and mounts move together.
        self._lock = threading.RLock()
        self._served = ServedLayers(self._state, catalog, lowers, counters, now_ns)

    def open(self) -> None:
        """Undo what a kill left half done: directories and mounts without a row."""
        known = {str(record.id) for record in self._state.all()}
        shared = {shared_name(number) for number in self._state.shared_layers()}
        undone = self._lowers.open(known | shared)
        strays = self._remove_strays()
        _log.info("snapshots_opened", snapshots=len(known), mounts_undone=undone, strays=strays)

    def close(self) -> None:
        """Mounts stay: containers run on them."""
        self._state.close()

    # ------------------------------------------------------------------ making snapshots

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Raises:
        AlreadyExists: the key is taken, or the target was found in the cache.
        NotFound: a whole image was asked for, and the cache does not have all of it.
        """
        self._check_namespace(key, parent)
        target = labels.get(TARGET_LABEL)
        if target is not None and WHOLE_IMAGE_LABEL in labels and not parent:
            self._served.serve_image(target, key, labels, self._lock)
            raise AlreadyExists(f"all layers up to {target} are in the cache")
        with self._lock:
            if target is not None and self._served.serve_layer(target, key, parent, labels):
                raise AlreadyExists(f"layer {target} is in the cache")
            return self._create(key, parent, labels, SnapshotKind.ACTIVE)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        self._check_namespace(key, parent)
        with self._lock:
            return self._create(key, parent, labels, SnapshotKind.VIEW)

    def mounts(self, key: str) -> list[Mount]:
        """Raises:
        NotFound: no such snapshot.
        Conflict: it is committed.
        Unavailable: a cached layer below it cannot be mounted any more.
        """
        self._check_namespace(key)
        with self._lock:
            record = self._state.get(key)
            if record.info.kind is SnapshotKind.COMMITTED:
                raise Conflict(f"snapshot {key} is committed: only active ones and views mount")
            return self._mounts_of(record)

    def commit(self, key: str, name: str, labels: Mapping[str, str], parent: str = "") -> None:
        """Raises:
        NotFound, Conflict, AlreadyExists: as in `SnapshotState.commit`.
        InvalidInput: a rebase to another parent is asked for, which we do not declare.
        """
        self._check_namespace(key, name)
        with self._lock:
            if parent and self._state.get(key).info.parent != parent:
                raise InvalidInput(f"snapshot {key} cannot be moved to the parent {parent}")
            with self._state.transaction():
                self._state.commit(key, name, labels, self._now_ns())

    # ------------------------------------------------------------------ asking and changing

    def stat(self, key: str) -> SnapshotInfo:
        self._check_namespace(key)
        return self._state.get(key).info

    def update(self, info: SnapshotInfo, paths: Iterable[str]) -> SnapshotInfo:
        """Set labels: all of them without paths or with `labels`, single ones with `labels.<key>`.

        Raises:
            InvalidInput: a path names anything else.
        """
        self._check_namespace(info.name)
        with self._lock, self._state.transaction():
            labels = dict(self._state.get(info.name).info.labels)
            for path in list(paths) or ["labels"]:
                prefix, _, label = path.partition(".")
                if prefix != "labels" or path == "labels.":
                    raise InvalidInput(f"field {path} of snapshot {info.name} cannot be changed")
                if label:
                    labels[label] = info.labels.get(label, "")
                else:
                    labels = dict(info.labels)
            return self._state.set_labels(info.name, labels, self._now_ns())

    def walk(self, filters: Iterable[str]) -> list[SnapshotInfo]:
        """Only what containerd made, or was told of: it would remove whatever else stood here."""
        expressions = list(filters)
        matches = parse_filters(expressions)
        # containerd asks like this after every layer of the cache: reading all rows each time
        # would make an image with a hundred layers slow.
        asked = _TARGET_FILTER.match(expressions[0]) if len(expressions) == 1 else None
        records = self._state.labelled(asked[1]) if asked else self._state.all()
        return [record.info for record in records if matches(record.info)]

    def usage(self, key: str, stop: threading.Event) -> SnapshotUsage:
        """Without parents. Raises Cancelled when `stop` is set meanwhile."""
        self._check_namespace(key)
        record = self._state.get(key)
        if record.usage is not None:
            return record.usage
        if record.info.kind is SnapshotKind.VIEW:
            return SnapshotUsage(0, 0)
        usage = measure_usage(self._directory(record.id) / "fs", stop)
        if record.info.kind is SnapshotKind.COMMITTED:
            with self._lock, self._state.transaction():
                self._state.set_usage(record.id, usage)
        return usage

    def remove(self, key: str) -> None:
        """Raises:
        NotFound: no such snapshot.
        Conflict: another one lies over it.
        """
        self._check_namespace(key)
        with self._lock:
            with self._state.transaction():
                record = self._state.delete(key)
                unshared = self._state.forget_unshared_layers() if record.chain else []
            self._served.release(str(record.id), *map(shared_name, unshared))
        # Large trees take a while: the lock is not held, and a kill here leaves a stray.
        shutil.rmtree(self._directory(record.id), ignore_errors=True)

    def cleanup(self) -> None:
        """Remove directories that an interrupted Remove left behind."""
        with self._lock:
            self._remove_strays()

    # ------------------------------------------------------------------ directories and mounts

    def _create(
        self, key: str, parent: str, labels: Mapping[str, str], kind: SnapshotKind
    ) -> list[Mount]:
        now_ns = self._now_ns()
        info = SnapshotInfo(key, parent, kind, dict(labels), now_ns, updated_ns=now_ns)
        directory: Path | None = None
        try:
            with self._state.transaction():
                record = SnapshotRecord(self._state.insert(info), info)
                directory = self._directory(record.id)
                self._make_directory(directory, record)
                mounts = self._mounts_of(record)
        except BaseException:
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        return mounts

    def _make_directory(self, directory: Path, record: SnapshotRecord) -> None:
        shutil.rmtree(directory, ignore_errors=True)  # of an ID whose transaction never ended
        content = directory / "fs"
        content.mkdir(parents=True)
        directory.chmod(0o700)
        content.chmod(0o755)
        if record.info.kind is SnapshotKind.ACTIVE:
            (directory / "work").mkdir(mode=0o711)
            lineage = self._state.ancestry(record.info.parent)
            if lineage:
                # The root of an overlay has the owner of its upper directory.
                owner = self._lower_paths(lineage[0])[0].stat()
                os.chown(content, owner.st_uid, owner.st_gid)

    def _mounts_of(self, record: SnapshotRecord) -> list[Mount]:
        """The one mount that shows the snapshot. On a miss it is never read-only: containerd 2.4
        takes that as a sign that the layer is there already."""
        content = self._directory(record.id) / "fs"
        lineage = self._state.ancestry(record.info.parent)
        lowers = [str(path) for each in lineage for path in self._lower_paths(each)]
        if record.info.kind is SnapshotKind.ACTIVE:
            if not lowers:
                return [Mount("bind", str(content), ("rw", "rbind"))]
            upper = (f"workdir={content.parent / 'work'}", f"upperdir={content}")
            return [_overlay(*self._index_off, *upper, f"lowerdir={':'.join(lowers)}")]
        if len(lowers) > 1:
            return [_overlay(*self._index_off, f"lowerdir={':'.join(lowers)}")]
        return [Mount("bind", lowers[0] if lowers else str(content), ("ro", "rbind"))]

    def _lower_paths(self, record: SnapshotRecord) -> list[Path]:
        """The short paths of a committed snapshot, the uppermost first."""
        if record.layer is not None or record.chain:
            return self._served.ensure_mounted(record)
        name = str(record.id)
        if not self._lowers.is_ready(name):
            self._lowers.link(name, self._directory(record.id) / "fs")
        return [self._lowers.path(name)]

    def _remove_strays(self) -> int:
        known = {str(record.id) for record in self._state.all()}
        strays = [each for each in self._snapshots_dir.iterdir() if each.name not in known]
        for stray in strays:
            shutil.rmtree(stray, ignore_errors=True)
        return len(strays)

    def _directory(self, snapshot_id: int) -> Path:
        return self._snapshots_dir / str(snapshot_id)

    def _check_namespace(self, *keys: str) -> None:
        """containerd's keys are `<namespace>/<number>/<key>`; names of ours begin the same way."""
        for key in filter(None, keys):
            namespace, separator, _ = key.partition("/")
            if not separator or not namespace:
                raise InvalidInput(f"snapshot key {key!r} does not begin with a namespace")
            with self._lock:
                if self._namespace is None:
                    with self._state.transaction():
                        self._state.set_fact(_NAMESPACE_FACT, namespace)
                    self._namespace = namespace
                if namespace == self._namespace:
                    continue
            self._counters.add(Count.REFUSED_NAMESPACES)
            raise AccessDenied(
                f"snapshot key {key!r} is of the namespace {namespace}; this snapshotter serves"
                f" {self._namespace} only"
            )


def _overlay(*options: str) -> Mount:
    return Mount("overlay", "overlay", options)
