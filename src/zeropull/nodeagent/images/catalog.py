"""The node's catalog: which verified layer directories our snapshotter plugin may serve.

N/catalog/<chain hex> is a symbolic link to a layer in N/layers or in a cache volume. Only what has
passed its metadata check gets an entry; what turned out bad loses it, and a volume's copy of it is
never linked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zeropull.controlapi.messages import VolumeMount
from zeropull.errors import IntegrityError, NotFound
from zeropull.imagecache.layout import (
    GenerationIndex,
    generation_blob,
    generation_layer,
    read_generation_index,
)
from zeropull.layers.layout import TEMPORARY_PREFIX, layer_directory, read_layer_index
from zeropull.layers.verify import verify_metadata
from zeropull.linux.removal import try_remove_tree
from zeropull.nodeagent.disk import set_aside, touch
from zeropull.nodeagent.records import AgentRecords
from zeropull.oci.digests import digest_of
from zeropull.telemetry import get_logger

VERIFY_PARALLEL = 8

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FoundLayer:
    """A verified layer on this node. `metadata_bytes` is what the verification read."""

    path: Path
    from_volume: bool
    metadata_bytes: int


class Catalog:
    """Finds, verifies and links layers; remembers what it dropped."""

    def __init__(self, folder: Path, layers: Path, records: AgentRecords) -> None:
        self.layers = layers
        self.dropped = records.load_dropped()
        self.failures = 0
        self.damaged_volumes: set[Path] = set()
        self._folder = folder
        self._records = records
        self._verified: dict[Path, FoundLayer] = {}
        self._slots = asyncio.Semaphore(VERIFY_PARALLEL)
        folder.mkdir(parents=True, exist_ok=True)
        layers.mkdir(parents=True, exist_ok=True)

    async def link_layers(
        self, chain_ids: Sequence[str], volumes: Sequence[VolumeMount]
    ) -> dict[str, FoundLayer]:
        """Verify and link what is here of `chain_ids`; the rest is missing. Layers in parallel."""
        indexes = [(v, i) for v in volumes if (i := await self._index(v)) is not None]
        found = await asyncio.gather(*(self._find(each, indexes) for each in chain_ids))
        result = {c: layer for c, layer in zip(chain_ids, found, strict=True) if layer is not None}
        for chain_id, layer in result.items():
            self._link(chain_id, layer.path)
        return result

    async def volume_blob(self, volumes: Sequence[VolumeMount], digest: str) -> bytes | None:
        """A manifest or config from a volume, verified by its digest."""
        for volume in volumes:
            path = generation_blob(Path(volume.path), digest)
            with contextlib.suppress(OSError):
                content = await asyncio.to_thread(path.read_bytes)
                if digest_of(content) == digest:
                    return content
                self._note_damage(path, "its digest is wrong")
        return None

    def drop(self, chain_id: str, why: str) -> None:
        """The bytes that the layer's entry leads to are bad: it has no entry any more. The node's
        own copy is removed; a volume's copy is never used again."""
        link = layer_directory(self._folder, chain_id)
        path = self.target(chain_id)
        if path is not None and self.is_in_store(path):
            self.drop_own(path, why)
            return
        self._drop_of_volume(chain_id, path or link, why)

    def drop_own(self, layer: Path, why: str) -> None:
        """The bytes of the node's own `layer` are bad: it goes, so that it is pulled again. Mounts
        of it live on until they are unmounted."""
        self._note_damage(layer, why)
        self.forget(layer)
        with contextlib.suppress(FileNotFoundError):
            doomed = set_aside(layer)
            # Gigabytes take a while, and nobody waits for it: what a crash leaves of it is removed
            # when the agent starts.
            threading.Thread(target=try_remove_tree, args=(doomed,), daemon=True).start()

    def forget(self, layer: Path) -> None:
        """The directory `layer` is about to go, or damaged: no entry may lead there."""
        self._verified.pop(layer, None)
        link = self._folder / layer.name
        with contextlib.suppress(FileNotFoundError):
            if link.readlink() == layer:
                link.unlink()

    def prune(self, volumes: Sequence[VolumeMount]) -> None:
        """Forget entries that lead to volumes which are assigned no more. Blocking."""
        kept = [self.layers, *(Path(volume.path) for volume in volumes)]
        for link in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                target = link.readlink()
                if not any(target.is_relative_to(folder) for folder in kept):
                    self._verified.pop(target, None)
                    link.unlink()

    def target(self, chain_id: str) -> Path | None:
        """Where the entry points, None when there is none."""
        try:
            return layer_directory(self._folder, chain_id).readlink()
        except FileNotFoundError:
            return None

    def lineage(self, chain_id: str) -> list[str]:
        """The layer and those below it, as far as the layers that are here tell. Blocking."""
        found: list[str] = []
        while chain_id and chain_id not in found:
            found.append(chain_id)
            own = layer_directory(self.layers, chain_id)
            path = own if own.is_dir() else self.target(chain_id)
            try:
                chain_id = read_layer_index(path).parent_chain_id if path is not None else ""
            except (IntegrityError, NotFound):
                break
        return found

    def is_in_store(self, layer: Path) -> bool:
        """The directory `layer` is of the node's own store, not of a volume."""
        return layer.parent == self.layers

    def own_layers(self) -> list[Path]:
        """Layer directories in the node's own store, those without an entry as well. Blocking."""
        return sorted(p for p in self.layers.iterdir() if not p.name.startswith(TEMPORARY_PREFIX))

    def linked_to(self, found: Mapping[str, FoundLayer]) -> bool:
        """The entries of all these layers still lead where they were found."""
        return all(self.target(chain_id) == layer.path for chain_id, layer in found.items())

    async def _index(self, volume: VolumeMount) -> GenerationIndex | None:
        try:
            return await asyncio.to_thread(
                read_generation_index, Path(volume.path), digest=volume.index_digest
            )
        except (IntegrityError, NotFound) as error:
            self._note_damage(Path(volume.path), str(error))
            self.damaged_volumes.add(Path(volume.path))
            return None

    async def _find(
        self, chain_id: str, indexes: Sequence[tuple[VolumeMount, GenerationIndex]]
    ) -> FoundLayer | None:
        own = layer_directory(self.layers, chain_id)
        if own.is_dir():
            layer = await self._verify(chain_id, own, None, from_volume=False)
            if layer is not None:
                await asyncio.to_thread(touch, own)
                return layer
        if chain_id in self.dropped:
            return None
        for volume, index in indexes:
            if chain_id not in index.layers:
                continue
            path = generation_layer(Path(volume.path), chain_id)
            layer = await self._verify(chain_id, path, index.layers[chain_id], from_volume=True)
            if layer is not None:
                return layer
        return None

    async def _verify(
        self, chain_id: str, path: Path, index_digest: str | None, *, from_volume: bool
    ) -> FoundLayer | None:
        if path in self._verified:
            return self._verified[path]
        try:
            async with self._slots:
                size = await asyncio.to_thread(_verify_layer, path, chain_id, index_digest)
        except (IntegrityError, NotFound, OSError) as error:
            if from_volume:
                self._drop_of_volume(chain_id, path, str(error))
            else:
                self.drop_own(path, str(error))
            return None
        self._verified[path] = FoundLayer(path, from_volume, size)
        return self._verified[path]

    def _drop_of_volume(self, chain_id: str, layer: Path, why: str) -> None:
        self.forget(layer)
        self._note_damage(layer, why)
        self.dropped.add(chain_id)
        self._records.save_dropped(self.dropped)

    def _link(self, chain_id: str, target: Path) -> None:
        link = layer_directory(self._folder, chain_id)
        with contextlib.suppress(FileNotFoundError):
            if link.readlink() == target:
                return
        temporary = link.with_name(f".tmp-{link.name}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(link)

    def _note_damage(self, path: Path, why: str) -> None:
        self.failures += 1
        log.warning("part of the image cache is not used", path=str(path), reason=why)


def _verify_layer(path: Path, chain_id: str, index_digest: str | None) -> int:
    index = read_layer_index(path, digest=index_digest)
    if index.chain_id != chain_id:
        raise IntegrityError(f"{path} is the layer {index.chain_id}, expected {chain_id}")
    verify_metadata(path)
    return index.meta.size
