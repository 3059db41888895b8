"""Snapshots that stand for layers of the cache: found, verified, mounted and recorded.

A layer's metadata is verified before it is mounted, and a committed snapshot is recorded. One
snapshot may also stand for all layers of an image, when the caller asks for that (our own agent
does): one call and one row instead of one per layer, its mounts shared with other images.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from zeropull.containerd.snapshots import (
    WHOLE_IMAGE_LABEL,
    SnapshotInfo,
    SnapshotKind,
    SnapshotUsage,
    chain_digest,
)
from zeropull.errors import IntegrityError, NotFound, Unavailable, ZeropullError
from zeropull.snapshotter.catalog import CachedLayer, Catalog
from zeropull.snapshotter.counters import Count, Counters
from zeropull.snapshotter.lowers import Lowers
from zeropull.snapshotter.state import SnapshotRecord, SnapshotState
from zeropull.telemetry.logs import get_logger

_log = get_logger(__name__)


def shared_name(number: int) -> str:
    """Of a layer that whole images share, among the lowers."""
    return f"l{number}"


class ServedLayers:
    """The cache's part of one node's snapshots.

    `lock` is the snapshotter's: rows, directories and mounts change under it, one at a time.
    Digests are computed without it.
    """

    def __init__(
        self,
        state: SnapshotState,
        catalog: Catalog,
        lowers: Lowers,
        counters: Counters,
        now_ns: Callable[[], int],
        lock: threading.RLock,
    ) -> None:
        self._state = state
        self._catalog = catalog
        self._lowers = lowers
        self._counters = counters
        self._now_ns = now_ns
        self._lock = lock

    def serve_layer(self, chain_id: str, key: str, parent: str, labels: Mapping[str, str]) -> bool:
        """Whether the layer is now a committed snapshot that containerd can look up.

        Without `parent`, a layer that has one is served with all that lie below it, as an image is:
        containerd asks like this where it unpacks the layers of an image beside each other.
        """
        path = self._catalog.locate(chain_id)
        if path is None:
            return self._miss(Count.MISSES_NOT_CACHED, chain_id)
        try:
            layer = self._catalog.verify(path, chain_id)
            below = layer.index.parent_chain_id
            if below and not parent:
                layers = self._catalog.verify_chain(chain_id, self._mounted_layers())
                with self._lock:
                    self._record_image(layers, key, labels)
                served = True
            elif not _may_lie_over(below, parent):
                # Nothing is wrong with the layer: whoever asked means another image.
                return self._miss(Count.MISSES_PARENT, chain_id)
            else:
                with self._lock:
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
                self.ensure_mounted(known)
                return True
            # Another layer directory, or another parent record: one that nothing lies over is a
            # leftover that containerd has forgotten, or it would not have asked.
            if self._state.has_children(name):
                return False
            with self._state.transaction():
                self._state.delete(name)
            self.release(str(known.id))
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

    def serve_image(self, chain_id: str, key: str, labels: Mapping[str, str]) -> None:
        """Raises:
        NotFound: at least one layer is not served. The caller asks for each layer to learn which.
        """
        try:
            layers = self._catalog.verify_chain(chain_id, self._mounted_layers())
            if (
                chain_digest([each.index.chain_id for each in layers[::-1]])
                != (labels[WHOLE_IMAGE_LABEL])
            ):
                raise NotFound("the layers in the cache are others than the image's")
            with self._lock:
                mounted = self._record_image(layers, key, labels)
        except Exception as error:
            if isinstance(error, IntegrityError):
                self._counters.add(Count.VERIFICATION_FAILURES)
            _log.warning("image_miss", chain_id=chain_id, error=repr(error))
            raise NotFound(f"the image up to {chain_id} is not served: {error}") from error
        size = sum(each.size_bytes for each in layers)
        self._counters.add(Count.HITS, len(layers))
        self._counters.add(Count.HIT_BYTES, size)
        _log.info("image_hit", chain_id=chain_id, layers=len(layers), mounted=mounted, bytes=size)

    def _record_image(
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
                for layer, lower in zip(layers, map(shared_name, numbers), strict=True):
                    if not self._lowers.is_ready(lower):
                        self._lowers.mount(lower, layer.path)
                        mounted.append(lower)
                unshared = self._state.forget_unshared_layers()
        except BaseException:
            for lower in mounted:
                self._lowers.release(lower)
            raise
        self._counters.add(Count.MOUNTS, len(mounted))
        self.release(*map(shared_name, unshared))
        return len(mounted)

    def _miss(self, reason: Count, chain_id: str, error: Exception | None = None) -> bool:
        self._counters.add(Count.MISSES)
        self._counters.add(reason)
        if error is None:
            _log.info("layer_miss", chain_id=chain_id, reason=reason.value)
        else:
            _log.warning("layer_miss", chain_id=chain_id, reason=reason.value, error=repr(error))
        return False

    def ensure_mounted(self, record: SnapshotRecord) -> list[Path]:
        """The short paths of a served snapshot, the uppermost first, mounted again if a reboot took
        the mounts.

        Raises:
            Unavailable: a layer is bad by now, or cannot be mounted.
        """
        if record.layer is not None:
            names = [str(record.id)]
        else:
            names = [shared_name(number) for number in record.chain]
        if not all(map(self._lowers.is_ready, names)):
            with self._lock:
                self._mount_lost(record)
        return [self._lowers.path(name) for name in names]

    def _mount_lost(self, record: SnapshotRecord) -> None:
        if record.layer is not None:
            self._mount_again(str(record.id), record.info.name.rpartition("/")[2], record.layer)
            return
        layers = self._state.shared_layers()
        for number in record.chain:
            layer = layers[number]
            self._mount_again(shared_name(number), layer.chain_id, layer.path)

    def _mounted_layers(self) -> frozenset[tuple[Path, str]]:
        """Path and identity of the shared layers that are mounted: verified before that."""
        return frozenset(
            (layer.path, layer.identity)
            for layer in self._state.shared_layers().values()
            if self._lowers.is_ready(shared_name(layer.number))
        )

    def _mount_again(self, name: str, chain_id: str, layer: Path) -> None:
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

    def release(self, *names: str) -> None:
        self._counters.add(Count.UNMOUNTS, sum(map(self._lowers.release, names)))


def _may_lie_over(below: str, parent: str) -> bool:
    """Whether a layer over the chain ID `below` ("": the lowest) fits the snapshot `parent`, as far
    as its name tells: ours end with the chain ID, and so do those of containerd's own unpacking."""
    if not below or not parent:
        return not below and not parent
    last = parent.rpartition("/")[2]
    return last == below or not last.startswith("sha256:")
