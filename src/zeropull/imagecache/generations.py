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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zeropull.errors import Conflict, DiskFull, IntegrityError, InvalidInput, NotFound
from zeropull.layers.layout import (
    GENERATION_FILE,
    LAYER_FILE,
    LAYER_FILES,
    CachedImage,
    GenerationIndex,
    LayerIndex,
    encode_index,
    generation_blob,
    generation_layer,
    generation_profile,
    read_generation_index,
    write_durably,
)
from zeropull.layers.verify import verify_metadata
from zeropull.linux.files import EVERYBODY_READS, copy_file, replace_file, sync_folder
from zeropull.oci.digests import digest_of, hex_of
from zeropull.oci.images import ResolvedImage
from zeropull.providers.protocol import Volume
from zeropull.startprofiles.profile import decode_profile
from zeropull.stopping import check_stop

_BUILDING, _REMOVED, _PURGE = ".building-", ".removed-", ".purge-"


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

    def volume(self, endpoint_uid: str, generation: int) -> Volume:
        """Raises NotFound or IntegrityError when it is not there or cannot be read."""
        path = self._generations(endpoint_uid) / str(generation)
        read_generation_index(path)
        return Volume(generation, path, digest_of((path / GENERATION_FILE).read_bytes()))

    def newest(self, endpoint_uid: str) -> Volume | None:
        """The newest generation whose index can be read."""
        for generation in reversed(self.generations(endpoint_uid)):
            try:
                return self.volume(endpoint_uid, generation)
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
    ) -> Volume:
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
        cached = tuple(_cached(image) for image in images)
        newest = self.newest(endpoint_uid)
        if newest is not None and not profiles and _images(newest) == cached:
            return newest
        last = max(self.generations(endpoint_uid), default=0)
        number = last + 1 if number is None else number
        if number <= last:
            raise Conflict(f"generation {number} of {endpoint_uid} comes after generation {last}")
        sources = self._sources(endpoint_uid, cached, layer_sources, stop)
        self._check_budget(endpoint_uid, sources)
        parent = self._generations(endpoint_uid)
        parent.mkdir(parents=True, exist_ok=True)
        building = parent / f"{_BUILDING}{number}-{secrets.token_hex(4)}"
        try:
            building.mkdir()
            layers = self._bring_layers(building, sources, stop)
            kept = _profiles(newest, cached) if newest is not None else {}
            _write_blobs(building, images, {**kept, **(profiles or {})})
            index = GenerationIndex(number, endpoint_uid, created_at, cached, layers)
            content = encode_index(index)
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
        return Volume(number, target, digest_of(content))

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

    def remove_old(self, endpoint_uid: str, keep: set[int]) -> Removed:
        """Remove all generations but those in `keep` and the newest one."""
        removed = Removed()
        for number in self.generations(endpoint_uid)[:-1]:
            if number not in keep:
                removed += self.remove(endpoint_uid, number)
        return removed

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

    # ------------------------------------------------------------------ building

    def _sources(
        self,
        endpoint_uid: str,
        images: Sequence[CachedImage],
        offered: Mapping[str, Path],
        stop: threading.Event | None,
    ) -> dict[str, tuple[Path, LayerIndex, bool]]:
        """Directory, verified index, and whether it is published here already, by chain ID."""
        sources: dict[str, tuple[Path, LayerIndex, bool]] = {}
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
            sources[chain_id] = (directory, index, published is not None)
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

    def _check_budget(
        self, endpoint_uid: str, sources: Mapping[str, tuple[Path, LayerIndex, bool]]
    ) -> None:
        new = [(path, index) for path, index, published in sources.values() if not published]
        needed = sum(index.stored_bytes for _, index in new)
        if self.budget_bytes is not None:
            used = self.used_bytes()
            if used + needed > self.budget_bytes:
                raise DiskFull(
                    f"the image cache of {endpoint_uid} needs {needed} bytes for {len(new)} new "
                    f"layers; {used} of the budget's {self.budget_bytes} bytes are used, "
                    f"{max(0, self.budget_bytes - used)} are left"
                )
        self.root.mkdir(parents=True, exist_ok=True)
        device = self.root.stat().st_dev
        copied = sum(index.stored_bytes for path, index in new if path.stat().st_dev != device)
        status = os.statvfs(self.root)
        free = status.f_bavail * status.f_frsize
        if copied > free:
            raise DiskFull(
                f"the image cache of {endpoint_uid} needs {copied} bytes, {free} are free in "
                f"{self.root}"
            )

    def _bring_layers(
        self,
        building: Path,
        sources: Mapping[str, tuple[Path, LayerIndex, bool]],
        stop: threading.Event | None,
    ) -> dict[str, str]:
        (building / "layers").mkdir()
        digests: dict[str, str] = {}
        for chain_id, (source, index, _) in sources.items():
            target = generation_layer(building, chain_id)
            target.mkdir()
            for name in LAYER_FILES:
                _link_or_copy(source / name, target / name, stop)
            sync_folder(target)
            digest = digest_of((target / LAYER_FILE).read_bytes())
            if verify_metadata(target, digest=digest) != index:
                raise IntegrityError(f"{source} changed while it was collected")
            digests[chain_id] = digest
        return dict(sorted(digests.items()))

    def _endpoint(self, endpoint_uid: str) -> Path:
        if not endpoint_uid or endpoint_uid[0] == "." or "/" in endpoint_uid:
            raise InvalidInput(f"{endpoint_uid!r} is no endpoint uid")
        return self.root / endpoint_uid

    def _generations(self, endpoint_uid: str) -> Path:
        return self._endpoint(endpoint_uid) / "generations"


def _images(volume: Volume) -> tuple[CachedImage, ...]:
    return read_generation_index(volume.path).images


def _profiles(volume: Volume, images: Sequence[CachedImage]) -> dict[str, bytes]:
    """What the generation has of start profiles of these images."""
    found: dict[str, bytes] = {}
    for image in images:
        with contextlib.suppress(OSError):
            path = generation_profile(volume.path, image.manifest_digest)
            found[image.manifest_digest] = path.read_bytes()
    return found


def _cached(image: ResolvedImage) -> CachedImage:
    return CachedImage(
        image.manifest_digest,
        image.reference,
        image.manifest_media_type,
        image.config_digest,
        tuple(image.chain_ids),
    )


def _write_blobs(
    building: Path, images: Sequence[ResolvedImage], profiles: Mapping[str, bytes]
) -> None:
    (building / "blobs").mkdir()
    written: set[str] = set()
    for image in images:
        for digest, content in (
            (image.manifest_digest, image.manifest),
            (image.config_digest, image.config),
        ):
            if digest_of(content) != digest:
                raise IntegrityError(f"{image.reference}: its bytes are not {digest}")
            if digest not in written:
                written.add(digest)
                write_durably(generation_blob(building, digest), content)
    if profiles:
        (building / "profiles").mkdir()
        for manifest_digest, content in profiles.items():
            hex_of(manifest_digest)
            write_durably(generation_profile(building, manifest_digest), content)
        sync_folder(building / "profiles")


def _link_or_copy(source: Path, target: Path, stop: threading.Event | None) -> None:
    check_stop(stop)
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        copy_file(source, target, stop)


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
