"""The snapshots themselves: what each call of containerd does to rows, directories and mounts.

A layer that the catalog has is answered at Prepare (see `served`), and AlreadyExists tells
containerd that nothing is to be fetched. Every other snapshot is an ordinary overlay directory.
Contract: containerd, docs/snapshotters/remote-snapshotter.md and core/snapshots/snapshotter.go.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from zeropull.containerd.snapshots import (
    PARENT_CHAIN_LABEL,
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
from zeropull.snapshotter.directories import Directories, is_unpacked_apart
from zeropull.snapshotter.filters import parse_filters
from zeropull.snapshotter.lowers import Lowers
from zeropull.snapshotter.served_layers import ServedLayers, shared_name
from zeropull.snapshotter.state import SnapshotRecord, SnapshotState
from zeropull.snapshotter.usage import measure_usage
from zeropull.telemetry.logs import get_logger

_log = get_logger(__name__)

_NAMESPACE_FACT = "namespace"
_TARGET_FILTER = re.compile(rf'labels\."{re.escape(TARGET_LABEL)}"==(sha256:[0-9a-f]{{64}})(?:,|$)')


class Snapshotter:
    """All snapshots of one node, for one containerd namespace.

    containerd's namespaces do not isolate: it would let one tenant find a snapshot that another
    one made. So every key of another namespace is refused; `namespace` None binds this state to
    the first namespace that asks, for good. `maps_ids`: see `Directories`.

    Methods may be called from any thread. Changes wait for each other; `stat`, `mounts`, `walk`
    and `usage` do not wait for a change to reach the disk.
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
        maps_ids: bool = False,
    ) -> None:
        state_dir.mkdir(parents=True, exist_ok=True)
        self._state = SnapshotState(state_dir / "snapshots.db")
        self._lowers = lowers
        self._counters = counters
        self._now_ns = now_ns
        self._namespace = namespace or self._state.fact(_NAMESPACE_FACT)
        # One change at a time: rows, directories and mounts move together.
        self._lock = threading.RLock()
        self._served = ServedLayers(self._state, catalog, lowers, counters, now_ns, self._lock)
        self._directories = Directories(
            state_dir / "snapshots",
            self._state,
            lowers,
            self._served,
            self._lock,
            maps_ids=maps_ids,
        )

    def open(self) -> None:
        """Undo what a kill left half done: directories and mounts without a row."""
        known = self._state.all()
        served = {str(record.id) for record in known if record.layer is not None}
        shared = {shared_name(number) for number in self._state.shared_layers()}
        ordinary = {str(record.id) for record in known if record.layer is None}
        undone = self._lowers.open(served | shared, ordinary)
        strays = self._directories.remove_strays()
        _log.info("snapshots_opened", snapshots=len(known), mounts_undone=undone, strays=strays)

    def close(self) -> None:
        """Mounts stay: containers run on them."""
        self._state.close()

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Raises:
        AlreadyExists: the key is taken, or the target was found in the cache.
        NotFound: a whole image was asked for, and the cache does not have all of it.
        """
        self._check_namespace(key, parent)
        target = labels.get(TARGET_LABEL)
        if target is not None and WHOLE_IMAGE_LABEL in labels and not parent:
            self._served.serve_image(target, key, labels)
            raise AlreadyExists(f"all layers up to {target} are in the cache")
        if target is not None and self._served.serve_layer(target, key, parent, labels):
            raise AlreadyExists(f"layer {target} is in the cache")
        with self._lock:
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
        record = self._state.get(key)
        if record.info.kind is SnapshotKind.COMMITTED:
            raise Conflict(f"snapshot {key} is committed: only active ones and views mount")
        return self._directories.mounts(record)

    def commit(self, key: str, name: str, labels: Mapping[str, str], parent: str = "") -> None:
        """Make a layer of it. `parent` is for one that was unpacked apart from the layers below.

        Raises:
            NotFound, Conflict, AlreadyExists: as in `SnapshotState.commit` and `rebase`.
            InvalidInput: `parent` is another than it was prepared with, or its whiteouts are lost.
        """
        self._check_namespace(key, name, parent)
        with self._lock, self._state.transaction():
            record = self._state.get(key)
            if parent and record.info.parent != parent:
                if record.info.parent:
                    raise InvalidInput(
                        f"snapshot {key} lies over {record.info.parent}; it cannot be moved to"
                        f" {parent}"
                    )
                if not is_unpacked_apart(record):
                    raise InvalidInput(
                        f"snapshot {key} was prepared without label {PARENT_CHAIN_LABEL}, so its"
                        f" whiteouts are lost and it cannot be put over {parent}: take the"
                        ' capability "rebase" out of containerd\'s proxy_plugins table, or use'
                        " containerd 2.3 or newer"
                    )
                self._state.rebase(record.id, parent)
            self._state.commit(key, name, labels, self._now_ns())

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
        usage = measure_usage(self._directories.content(record.id), stop)
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
        self._directories.remove(record.id)

    def cleanup(self) -> None:
        """Remove directories that an interrupted Remove left behind."""
        with self._lock:
            self._directories.remove_strays()

    def _create(
        self, key: str, parent: str, labels: Mapping[str, str], kind: SnapshotKind
    ) -> list[Mount]:
        now_ns = self._now_ns()
        info = SnapshotInfo(key, parent, kind, dict(labels), now_ns, updated_ns=now_ns)
        record: SnapshotRecord | None = None
        try:
            with self._state.transaction():
                record = SnapshotRecord(self._state.insert(info), info)
                self._directories.make(record)
                mounts = self._directories.mounts(record)
        except BaseException:
            if record is not None:
                self._directories.remove(record.id)
            raise
        return mounts

    def _check_namespace(self, *keys: str) -> None:
        """containerd's keys are `<namespace>/<number>/<key>`; names of ours begin the same way."""
        for key in filter(None, keys):
            namespace, separator, _ = key.partition("/")
            if not separator or not namespace:
                raise InvalidInput(f"snapshot key {key!r} does not begin with a namespace")
            if self._namespace is None:
                self._bind_to(namespace)
            if namespace == self._namespace:
                continue
            self._counters.add(Count.REFUSED_NAMESPACES)
            raise AccessDenied(
                f"snapshot key {key!r} is of the namespace {namespace}; this snapshotter serves"
                f" {self._namespace} only"
            )

    def _bind_to(self, namespace: str) -> None:
        with self._lock:
            if self._namespace is None:
                with self._state.transaction():
                    self._state.set_fact(_NAMESPACE_FACT, namespace)
                self._namespace = namespace
