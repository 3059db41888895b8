"""The snapshots themselves: what each call of containerd does to rows, directories and mounts.

A layer that the catalog has is answered at Prepare: its metadata is verified, it is mounted, a
committed snapshot is recorded, and AlreadyExists tells containerd that nothing is to be fetched.
One snapshot may also stand for all layers of an image, when the caller asks for that (our own
agent does): one call and one row instead of one per layer, its mounts shared with other images.
Every other snapshot is an ordinary overlay directory. Contract: containerd,
docs/snapshotters/remote-snapshotter.md and core/snapshots/snapshotter.go.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from zeropull.containerd.snapshots import (
    TARGET_LABEL,
    WHOLE_IMAGE_LABEL,
    Mount,
    SnapshotInfo,
    SnapshotKind,
    SnapshotUsage,
    chain_digest,
)
from zeropull.errors import (
    AccessDenied,
    AlreadyExists,
    Conflict,
    IntegrityError,
    InvalidInput,
    NotFound,
    Unavailable,
    ZeropullError,
)
from zeropull.snapshotter.catalog import CachedLayer, Catalog
from zeropull.snapshotter.counters import Count, Counters
from zeropull.snapshotter.filters import parse_filters
from zeropull.snapshotter.lowers import Lowers
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
        self._catalog = catalog
        self._lowers = lowers
        self._counters = counters
        self._now_ns = now_ns
        self._namespace = namespace or self._state.fact(_NAMESPACE_FACT)
        self._index_off = ("index=off",) if _OVERLAY_INDEX.exists() else ()
        # One change at a time: rows, directories and mounts move together.
        self._lock = threading.RLock()

    def open(self) -> None:
        """Undo what a kill left half done: directories and mounts without a row."""
        known = {str(record.id) for record in self._state.all()}
        known |= {_shared_name(number) for number in self._state.shared_layers()}
        undone = self._lowers.open(known)
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
            self._serve_whole_image(target, key, labels)
            raise AlreadyExists(f"all layers up to {target} are in the cache")
        with self._lock:
            if target is not None and self._serve_from_cache(target, key, parent, labels):
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
            self._release(str(record.id), *map(_shared_name, unshared))
        # Large trees take a while: the lock is not held, and a kill here leaves a stray.
        shutil.rmtree(self._directory(record.id), ignore_errors=True)

    def cleanup(self) -> None:
        """Remove directories that an interrupted Remove left behind."""
        with self._lock:
            self._remove_strays()

    # ------------------------------------------------------------------ the cache

    def _serve_from_cache(
        self, chain_id: str, key: str, parent: str, labels: Mapping[str, str]
    ) -> bool:
        """Whether the layer is now a committed snapshot that containerd can look up."""
        path = self._catalog.locate(chain_id)
        if path is None:
            return self._miss(Count.MISSES_NOT_CACHED, chain_id)
        try:
            layer = self._catalog.verify(path, chain_id)
            if bool(layer.index.parent_chain_id) != bool(parent):
                raise IntegrityError(f"{path} has another parent than {parent or 'none'}")
            served = self._record_layer(layer, key, parent, labels)
        except IntegrityError as error:
            self._counters.add(Count.VERIFICATION_FAILURES)
            self._catalog.drop(chain_id, path)
            return self._miss(Count.MISSES_VERIFICATION, chain_id, error)
        except NotFound as error:
            return self._miss(Count.MISSES_NOT_CACHED, chain_id, error)
        except Exception as error:
            # Whatever is wrong with the cache, containerd can still pull: never fail it.
            return self._miss(Count.MISSES_MOUNT, chain_id, error)
        if not served:
            return self._miss(Count.MISSES_IN_USE, chain_id)
        self._counters.add(Count.HITS)
        self._counters.add(Count.HIT_BYTES, layer.size_bytes)
        _log.info("layer_hit", chain_id=chain_id, layer=str(path), bytes=layer.size_bytes)
        return True

    def _record_layer(
        self, layer: CachedLayer, key: str, parent: str, labels: Mapping[str, str]
    ) -> bool:
        """The name is derived from the chain ID alone, so that it is the same after any loss."""
        name = f"{key.partition('/')[0]}/cache/{layer.index.chain_id}"
        known = self._state.find(name)
        if known is not None:
            if known.layer == layer.path and known.info.parent == parent:
                self._ensure_lowers(known)
                return True
            # Another layer directory, or another parent record: one that nothing lies over is a
            # leftover that containerd has forgotten, or it would not have asked.
            if self._state.has_children(name):
                return False
            with self._state.transaction():
                self._state.delete(name)
            self._release(str(known.id))
        now_ns = self._now_ns()
        info = SnapshotInfo(
            name, parent, SnapshotKind.COMMITTED, dict(labels), now_ns, updated_ns=now_ns
        )
        created: int | None = None
        try:
            with self._state.transaction():
                created = self._state.insert(info, layer.path)
                self._state.set_usage(created, SnapshotUsage(layer.size_bytes, layer.index.files))
                self._lowers.mount(str(created), layer.path)
        except BaseException:
            if created is not None:
                self._lowers.release(str(created))
            raise
        self._counters.add(Count.MOUNTS)
        return True

    def _serve_whole_image(self, chain_id: str, key: str, labels: Mapping[str, str]) -> None:
        """Raises:
        NotFound: not served, for whatever reason; which layer it is, the caller learns by asking
            for each.
        """
        try:
            layers = self._catalog.verify_chain(chain_id)
            if (
                chain_digest([each.index.chain_id for each in layers[::-1]])
                != (labels[WHOLE_IMAGE_LABEL])
            ):
                raise NotFound("the layers in the cache are others than the image's")
            with self._lock:
                mounted = self._record_whole_image(layers, key, labels)
        except Exception as error:
            if isinstance(error, IntegrityError):
                self._counters.add(Count.VERIFICATION_FAILURES)
            _log.warning("image_miss", chain_id=chain_id, error=repr(error))
            raise NotFound(f"the image up to {chain_id} is not served: {error}") from error
        size = sum(each.size_bytes for each in layers)
        self._counters.add(Count.HITS, len(layers))
        self._counters.add(Count.HIT_BYTES, size)
        _log.info("image_hit", chain_id=chain_id, layers=len(layers), mounted=mounted, bytes=size)

    def _record_whole_image(
        self, layers: Sequence[CachedLayer], key: str, labels: Mapping[str, str]
    ) -> int:
        """One row for all; returns the number of layers that no other image had mounted."""
        name = f"{key.partition('/')[0]}/image/{layers[0].index.chain_id}"
        now_ns = self._now_ns()
        info = SnapshotInfo(name, "", SnapshotKind.COMMITTED, dict(labels), now_ns, now_ns)
        usage = SnapshotUsage(
            sum(each.size_bytes for each in layers), sum(each.index.files for each in layers)
        )
        mounted: list[str] = []
        try:
            with self._state.transaction():
                numbers = [
                    self._state.share_layer(each.index.chain_id, each.path, each.identity)
                    for each in layers
                ]
                known = self._state.find(name)
                if known is not None and known.chain != tuple(numbers):
                    self._state.delete(name)  # a leftover that containerd has forgotten
                    known = None
                if known is None:
                    self._state.set_usage(self._state.insert(info, chain=numbers), usage)
                for layer, lower in zip(layers, map(_shared_name, numbers), strict=True):
                    if not self._lowers.is_ready(lower):
                        self._lowers.mount(lower, layer.path)
                        mounted.append(lower)
                unshared = self._state.forget_unshared_layers()
        except BaseException:
            for lower in mounted:
                self._lowers.release(lower)
            raise
        self._counters.add(Count.MOUNTS, len(mounted))
        self._release(*map(_shared_name, unshared))
        return len(mounted)

    def _miss(self, reason: Count, chain_id: str, error: Exception | None = None) -> bool:
        self._counters.add(Count.MISSES)
        self._counters.add(reason)
        if error is None:
            _log.info("layer_miss", chain_id=chain_id, reason=reason.value)
        else:
            _log.warning("layer_miss", chain_id=chain_id, reason=reason.value, error=repr(error))
        return False

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
                owner = self._ensure_lowers(lineage[0])[0].stat()
                os.chown(content, owner.st_uid, owner.st_gid)

    def _mounts_of(self, record: SnapshotRecord) -> list[Mount]:
        """The one mount that shows the snapshot. On a miss it is never read-only: containerd 2.4
        takes that as a sign that the layer is there already."""
        content = self._directory(record.id) / "fs"
        lineage = self._state.ancestry(record.info.parent)
        lowers = [str(path) for each in lineage for path in self._ensure_lowers(each)]
        if record.info.kind is SnapshotKind.ACTIVE:
            if not lowers:
                return [Mount("bind", str(content), ("rw", "rbind"))]
            upper = (f"workdir={content.parent / 'work'}", f"upperdir={content}")
            return [_overlay(*self._index_off, *upper, f"lowerdir={':'.join(lowers)}")]
        if len(lowers) > 1:
            return [_overlay(*self._index_off, f"lowerdir={':'.join(lowers)}")]
        return [Mount("bind", lowers[0] if lowers else str(content), ("ro", "rbind"))]

    def _ensure_lowers(self, record: SnapshotRecord) -> list[Path]:
        """The short paths of a committed snapshot, the uppermost first, mounted again if a reboot
        took the mounts."""
        if record.chain:
            names = [_shared_name(number) for number in record.chain]
            if not all(map(self._lowers.is_ready, names)):
                layers = self._state.shared_layers()
                for number in record.chain:
                    layer = layers[number]
                    self._ensure_mounted(_shared_name(number), layer.chain_id, layer.path)
            return [self._lowers.path(name) for name in names]
        name = str(record.id)
        if record.layer is not None:
            self._ensure_mounted(name, record.info.name.rpartition("/")[2], record.layer)
        elif not self._lowers.is_ready(name):
            self._lowers.link(name, self._directory(record.id) / "fs")
        return [self._lowers.path(name)]

    def _ensure_mounted(self, name: str, chain_id: str, layer: Path) -> None:
        if self._lowers.is_ready(name):
            return
        try:
            self._catalog.verify(layer, chain_id)
            self._lowers.mount(name, layer)
        except IntegrityError as error:
            self._counters.add(Count.VERIFICATION_FAILURES)
            self._catalog.drop(chain_id, layer)
            raise Unavailable(f"layer {chain_id} went bad, delete the image: {error}") from error
        except (OSError, ZeropullError) as error:
            raise Unavailable(f"layer {chain_id} cannot be mounted again: {error}") from error
        self._counters.add(Count.MOUNTS)
        _log.info("layer_mounted_again", chain_id=chain_id, layer=str(layer))

    def _release(self, *names: str) -> None:
        self._counters.add(Count.UNMOUNTS, sum(map(self._lowers.release, names)))

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


def _shared_name(number: int) -> str:
    """Of a layer that whole images share, among the lowers."""
    return f"l{number}"


def _overlay(*options: str) -> Mount:
    return Mount("overlay", "overlay", options)
