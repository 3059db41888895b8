"""Fills the folder of a generation that is being built: layers, manifests, configs, profiles."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zeropull.errors import DiskFull, IntegrityError
from zeropull.imagecache.layout import (
    CachedImage,
    generation_blob,
    generation_layer,
    generation_profile,
)
from zeropull.layers.layout import LAYER_FILE, LAYER_FILES, LayerIndex, write_durably
from zeropull.layers.verify import verify_metadata
from zeropull.linux.files import copy_file, sync_folder
from zeropull.oci.digests import digest_of, hex_of
from zeropull.oci.images import ResolvedImage
from zeropull.stopping import check_stop

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class LayerSource:
    """A layer directory to take a layer from. `is_published`: it is in an older generation of the
    same endpoint, so that the layer needs no more room."""

    directory: Path
    index: LayerIndex
    is_published: bool


def cached_image(image: ResolvedImage) -> CachedImage:
    """The image as generation.json lists it."""
    return CachedImage(
        image.manifest_digest,
        image.reference,
        image.manifest_media_type,
        image.config_digest,
        tuple(image.chain_ids),
    )


def check_free_space(root: Path, what: str, sources: Iterable[LayerSource]) -> None:
    """Raises:
    DiskFull: the sources on other disks do not fit into `root`; it names `what` needs the room.
    """
    device = root.stat().st_dev
    needed = sum(s.index.stored_bytes for s in sources if s.directory.stat().st_dev != device)
    status = os.statvfs(root)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise DiskFull(f"{what} needs {needed} bytes, {free} are free in {root}")


def bring_layers(
    building: Path, sources: Mapping[str, LayerSource], stop: threading.Event | None
) -> dict[str, str]:
    """Link or copy layers into the generation; returns the digest of each one's layer.json by
    chain ID.

    Raises:
        IntegrityError: a source has changed since its index was read.
        Unavailable: it was stopped.
    """
    (building / "layers").mkdir()
    digests: dict[str, str] = {}
    for chain_id, source in sources.items():
        target = generation_layer(building, chain_id)
        target.mkdir()
        for name in LAYER_FILES:
            _link_or_copy(source.directory / name, target / name, stop)
        sync_folder(target)
        digest = digest_of((target / LAYER_FILE).read_bytes())
        if verify_metadata(target, digest=digest) != source.index:
            raise IntegrityError(f"{source.directory} changed while it was collected")
        digests[chain_id] = digest
    return dict(sorted(digests.items()))


def write_blobs(
    building: Path, images: Sequence[ResolvedImage], profiles: Mapping[str, bytes]
) -> None:
    """Write the images' manifests and configs, and start profiles by manifest digest.

    Raises:
        IntegrityError: a document is not what its digest says.
    """
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
        if error.errno not in _NO_LINK:
            raise
        copy_file(source, target, stop)
