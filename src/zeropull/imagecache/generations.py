"""Generations on the control plane's disk: built aside, published by rename, swept and purged.

    <root>/<endpoint uid>/generations/<n>/              published, never changes
    <root>/<endpoint uid>/generations/.building-...     being built, or left by a crash
    <root>/<endpoint uid>/generations/.removed-...      being removed
    <root>/<endpoint uid>/staging/...                   layers collected from nodes
    <root>/.purge-<endpoint uid>-...                    being purged

Endpoints share no file: a layer is linked only from a generation or a node of the same endpoint.
Everything here blocks; async callers run it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zeropull.errors import Conflict, DiskFull, IntegrityError, InvalidInput, NotFound
from zeropull.imagecache.building import (
    LayerSource,
    bring_layers,
    cached_image,
    check_free_space,
    write_blobs,
)
from zeropull.imagecache.layout import (
    GENERATION_FILE,
    CachedImage,
    GenerationIndex,
    generation_layer,
    generation_profile,
    read_generation_index,
)
from zeropull.layers.layout import encode_document, write_durably
from zeropull.layers.verify import verify_metadata
from zeropull.linux.files import EVERYBODY_READS, replace_file, sync_folder
from zeropull.oci.digests import digest_of
from zeropull.oci.images import ResolvedImage
from zeropull.startprofiles.profile import decode_profile
from zeropull.stopping import check_stop

_BUILDING, _REMOVED, _PURGE = ".building-", ".removed-", ".purge-"


@dataclass(frozen=True, slots=True)
class PublishedGeneration:
    """A generation that can be read. `index_digest` is the sha256 digest of generation.json."""

    number: int
    path: Path
    index_digest: str


@dataclass(frozen=True, slots=True)
class Removed:
    """What a purge or a sweep unlinked. `bytes` counts files whose last link went."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: Removed) -> Removed:
        return Removed(self.files + other.files, self.bytes + other.bytes)


class GenerationStore:
    """The image caches of all endpoints; `budget_bytes` None means the disk is the only limit."""

    def __init__(self, root: Path, *, budget_bytes: int | None = None) -> None:
        self.root = root
        self.budget_bytes = budget_bytes

    def endpoints(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and p.name[0] != ".")

    def generations(self, endpoint_uid: str) -> list[int]:
        """Published numbers, ascending."""
        directory = self._generations(endpoint_uid)
        if not directory.is_dir():
            return []
        return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())

    def published(self, endpoint_uid: str, number: int) -> PublishedGeneration:
        """Raises NotFound or IntegrityError when it is not there or cannot be read."""
        path = self._generations(endpoint_uid) / str(number)
        read_generation_index(path)
        digest = digest_of((path / GENERATION_FILE).read_bytes())
        return PublishedGeneration(number, path, digest)

    def newest(self, endpoint_uid: str) -> PublishedGeneration | None:
        """The newest generation whose index can be read."""
        for number in reversed(self.generations(endpoint_uid)):
            try:
                return self.published(endpoint_uid, number)
            except (NotFound, IntegrityError):
                continue
        return None

    def has_layer(self, endpoint_uid: str, chain_id: str) -> bool:
        """Whether `build` would find the layer without a source for it."""
        return self._published_layer(endpoint_uid, chain_id) is not None

    @contextmanager
    def staging(self, endpoint_uid: str) -> Iterator[Path]:
        """An empty directory on the caches' file system, for layers on their way to `build`."""
        path = self._endpoint(endpoint_uid) / "staging" / secrets.token_hex(8)
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def build(
        self,
        endpoint_uid: str,
        images: Sequence[ResolvedImage],
        layer_sources: Mapping[str, Path],
        *,
        created_at: float,
        number: int | None = None,
        profiles: Mapping[str, bytes] | None = None,
        stop: threading.Event | None = None,
    ) -> PublishedGeneration:
        """Publish a generation with these images, or return the newest when it has just these.

        Layers come from this endpoint's generations where they have them, else from the layer
        directories `layer_sources` (by chain ID), by hard link or, on another disk, by copy.
        `number` None takes the next one. `profiles`: start profiles by manifest digest.
        `created_at` in Unix seconds. `stop`, once set, ends the build soon; nothing of it is left.

        Raises:
            Unavailable: it was stopped.
            NotFound: a layer is in neither place.
            IntegrityError: a source is damaged.
            DiskFull: the budget or the disk, with the arithmetic.
            Conflict: `number` is published already, with other images, or is not a new one.
        """
        cached = tuple(cached_image(image) for image in images)
        newest = self.newest(endpoint_uid)
        if newest is not None and not profiles and _images(newest) == cached:
            return newest
        last = max(self.generations(endpoint_uid), default=0)
        number = last + 1 if number is None else number
        if number <= last:
            raise Conflict(f"generation {number} of {endpoint_uid} comes after generation {last}")
        sources = self._sources(endpoint_uid, cached, layer_sources, stop)
        self._check_room(endpoint_uid, sources.values())
        parent = self._generations(endpoint_uid)
        parent.mkdir(parents=True, exist_ok=True)
        building = parent / f"{_BUILDING}{number}-{secrets.token_hex(4)}"
        try:
            building.mkdir()
            layers = bring_layers(building, sources, stop)
            kept = _profiles(newest, cached) if newest is not None else {}
            write_blobs(building, images, {**kept, **(profiles or {})})
            index = GenerationIndex(number, endpoint_uid, created_at, cached, layers)
            content = encode_document(index)
            write_durably(building / GENERATION_FILE, content)
            for directory in (building / "blobs", building / "layers", building):
                sync_folder(directory)
            target = parent / str(number)
            check_stop(stop)
            building.rename(target)
            sync_folder(parent)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"no room for generation {number} in {parent}") from error
            raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return PublishedGeneration(number, target, digest_of(content))

    def has_profile(self, endpoint_uid: str, manifest_digest: str) -> bool:
        """Whether the newest generation has the image's start profile."""
        newest = self.newest(endpoint_uid)
        return newest is not None and generation_profile(newest.path, manifest_digest).exists()

    def keep_profile(self, endpoint_uid: str, manifest_digest: str, content: bytes) -> bool:
        """Put an image's start profile beside the newest generation that has the image; later
        generations take it over. False when there is none, or it has a profile. Nodes that have
        the generation attached find it there from now on.

        Raises:
            IntegrityError: it is no profile, or that of another image.
        """
        profile = decode_profile(content)
        newest = self.newest(endpoint_uid)
        images = _images(newest) if newest is not None else ()
        image = next((each for each in images if each.manifest_digest == manifest_digest), None)
        if newest is None or image is None:
            return False
        if (profile.manifest_digest, profile.chain_ids) != (manifest_digest, image.chain_ids):
            raise IntegrityError(f"the start profile is that of {profile.manifest_digest}")
        target = generation_profile(newest.path, manifest_digest)
        if target.exists():
            return False
        target.parent.mkdir(exist_ok=True)
        replace_file(target, content, mode=EVERYBODY_READS)
        return True

    def remove(self, endpoint_uid: str, generation: int) -> Removed:
        """Remove one generation (a damaged one, say); idempotent."""
        parent = self._generations(endpoint_uid)
        aside = parent / f"{_REMOVED}{generation}-{secrets.token_hex(4)}"
        try:
            (parent / str(generation)).rename(aside)
        except FileNotFoundError:
            return Removed()
        sync_folder(parent)
        return _remove_tree(aside)

    def purge(self, endpoint_uid: str) -> Removed:
        """Remove everything of the endpoint; idempotent. After the first rename, nothing of it can
        be found any more, and `sweep` finishes what a crash interrupts."""
        removed = Removed()
        directory = self._endpoint(endpoint_uid)
        try:
            directory.rename(self.root / f"{_PURGE}{endpoint_uid}-{secrets.token_hex(4)}")
            sync_folder(self.root)
        except FileNotFoundError:
            pass
        for left in self.root.glob(f"{_PURGE}{endpoint_uid}-*"):
            removed += _remove_tree(left)
        return removed

    def sweep(self) -> Removed:
        """Finish interrupted purges, removals and builds. Only while nothing is being built."""
        removed = Removed()
        patterns = (
            f"{_PURGE}*",
            f"*/generations/{_BUILDING}*",
            f"*/generations/{_REMOVED}*",
            "*/staging/*",
        )
        for pattern in patterns:
            for left in self.root.glob(pattern):
                removed += _remove_tree(left)
        return removed

    def used_bytes(self, endpoint_uid: str | None = None) -> int:
        """Disk space of one endpoint or all, every file counted once however often it is linked."""
        seen: set[tuple[int, int]] = set()
        total = 0
        for path in _files(self.root if endpoint_uid is None else self._endpoint(endpoint_uid)):
            status = path.lstat()
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
        return total

    def _sources(
        self,
        endpoint_uid: str,
        images: Sequence[CachedImage],
        offered: Mapping[str, Path],
        stop: threading.Event | None,
    ) -> dict[str, LayerSource]:
        """Where each layer comes from, by chain ID; its metadata is verified."""
        sources: dict[str, LayerSource] = {}
        for chain_id in [chain_id for image in images for chain_id in image.chain_ids]:
            if chain_id in sources:
                continue
            check_stop(stop)
            published = self._published_layer(endpoint_uid, chain_id)
            directory = published or offered.get(chain_id)
            if directory is None:
                raise NotFound(f"layer {chain_id} is neither offered nor in an older generation")
            index = verify_metadata(directory)
            if index.chain_id != chain_id:
                raise IntegrityError(f"{directory} holds layer {index.chain_id}, not {chain_id}")
            sources[chain_id] = LayerSource(directory, index, published is not None)
        return sources

    def _published_layer(self, endpoint_uid: str, chain_id: str) -> Path | None:
        """The layer in the newest generation that has it as its index says."""
        for number in reversed(self.generations(endpoint_uid)):
            path = self._generations(endpoint_uid) / str(number)
            try:
                expected = read_generation_index(path).layers.get(chain_id)
                if expected is None:
                    continue
                layer = generation_layer(path, chain_id)
                verify_metadata(layer, digest=expected)
            except (NotFound, IntegrityError):
                continue
            return layer
        return None

    def _check_room(self, endpoint_uid: str, sources: Iterable[LayerSource]) -> None:
        new = [source for source in sources if not source.is_published]
        needed = sum(source.index.stored_bytes for source in new)
        if self.budget_bytes is not None:
            used = self.used_bytes()
            if used + needed > self.budget_bytes:
                raise DiskFull(
                    f"the image cache of {endpoint_uid} needs {needed} bytes for {len(new)} new "
                    f"layers; {used} of the budget's {self.budget_bytes} bytes are used, "
                    f"{max(0, self.budget_bytes - used)} are left"
                )
        self.root.mkdir(parents=True, exist_ok=True)
        check_free_space(self.root, f"the image cache of {endpoint_uid}", new)

    def _endpoint(self, endpoint_uid: str) -> Path:
        if not endpoint_uid or endpoint_uid[0] == "." or "/" in endpoint_uid:
            raise InvalidInput(f"{endpoint_uid!r} is no endpoint uid")
        return self.root / endpoint_uid

    def _generations(self, endpoint_uid: str) -> Path:
        return self._endpoint(endpoint_uid) / "generations"


def _images(generation: PublishedGeneration) -> tuple[CachedImage, ...]:
    return read_generation_index(generation.path).images


def _profiles(generation: PublishedGeneration, images: Sequence[CachedImage]) -> dict[str, bytes]:
    """What the generation has of start profiles of these images."""
    found: dict[str, bytes] = {}
    for image in images:
        with contextlib.suppress(OSError):
            path = generation_profile(generation.path, image.manifest_digest)
            found[image.manifest_digest] = path.read_bytes()
    return found


def _remove_tree(path: Path) -> Removed:
    files = size = 0
    for file in _files(path):
        status = file.lstat()
        files += 1
        if status.st_nlink == 1:
            size += status.st_blocks * 512
        file.unlink()
    shutil.rmtree(path)
    return Removed(files, size)


def _files(path: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(path):
        for name in names:
            yield Path(directory) / name
