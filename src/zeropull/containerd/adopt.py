"""Make containerd know an image whose layers a snapshotter already has: no registry is asked.

What containerd's own unpacker does: manifest and config into the content store, each layer asked
for by chain ID, the references that keep garbage collection away, and at last the record. All
layers are asked for at once first; one by one, to learn which is missing, only when that fails.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress

from zeropull.containerd.client import ContainerdClient
from zeropull.containerd.images import ImageRecord
from zeropull.containerd.snapshots import (
    TARGET_LABEL,
    WHOLE_IMAGE_LABEL,
    SnapshotsClient,
    chain_digest,
)
from zeropull.errors import AlreadyExists, ImageError, NotFound
from zeropull.oci.images import Descriptor, ResolvedImage


async def adopt_image(
    client: ContainerdClient, snapshotter: str, image: ResolvedImage
) -> list[str]:
    """Register `image` with all layers from `snapshotter`; returns the chain IDs that it lacks.

    An empty list means that the image is there under `image.reference`, ready to be run, and stays
    until the record is deleted. Otherwise nothing is kept: pull those layers and call again.
    Idempotent.

    Raises:
        ImageError: the manifest is not an image manifest.
        Unavailable: containerd or the snapshotter does not answer.
    """
    chain_ids = image.chain_ids
    documents = _documents(snapshotter, image, chain_ids)
    async with client.leased() as leased:
        # Beside each other: every one of them waits for the disk. What is of no use goes with the
        # lease.
        there, *written = await asyncio.gather(
            _find_image(leased.snapshots(snapshotter), chain_ids),
            *(leased.content.write(*document) for document in documents),
            return_exceptions=True,
        )
        for each in (there, *written):
            if isinstance(each, BaseException):
                raise each
        assert isinstance(there, int)
        if there < len(chain_ids):
            return chain_ids[there:]
        target = Descriptor(image.manifest_media_type, image.manifest_digest, len(image.manifest))
        await leased.images.put(ImageRecord(name=image.reference, target=target))
    return []


async def _find_image(snapshots: SnapshotsClient, chain_ids: list[str]) -> int:
    """How many layers are there, from the lowest on."""
    if not chain_ids:
        return 0
    top = chain_ids[-1]
    if not await _claims(snapshots, top, "", {WHOLE_IMAGE_LABEL: chain_digest(chain_ids)}):
        return await _count_layers(snapshots, chain_ids)
    # From containerd's own record this may be an image that its snapshotter lost.
    return len(chain_ids) if await _is_known(snapshots, top) else 0


async def _count_layers(snapshots: SnapshotsClient, chain_ids: list[str]) -> int:
    """How many layers are there, from the lowest on. A layer over a missing one cannot be asked
    for: it is missing as far as we know."""
    claimed = 0
    for parent, chain_id in zip(["", *chain_ids], chain_ids, strict=False):
        if not await _claims(snapshots, chain_id, parent):
            break
        claimed += 1
    # From containerd's own record this may be a layer that its snapshotter lost: ask both.
    known = await asyncio.gather(*(_is_known(snapshots, each) for each in chain_ids[:claimed]))
    return known.index(False) if False in known else claimed


async def _claims(
    snapshots: SnapshotsClient, chain_id: str, parent: str, labels: Mapping[str, str] | None = None
) -> bool:
    key = f"extract-{time.time_ns()}-{secrets.token_hex(3)} {chain_id}"
    try:
        await snapshots.prepare(key, parent, {TARGET_LABEL: chain_id, **(labels or {})})
    except AlreadyExists:
        return True
    except NotFound:  # the snapshotter lost its parent, or lacks part of the image
        return False
    with suppress(NotFound):
        await snapshots.remove(key)
    return False


async def _is_known(snapshots: SnapshotsClient, chain_id: str) -> bool:
    try:
        await snapshots.stat(chain_id)
    except NotFound:
        return False
    return True


def _documents(
    snapshotter: str, image: ResolvedImage, chain_ids: list[str]
) -> list[tuple[str, bytes, dict[str, str]]]:
    """Digest, content and labels of config and manifest."""
    try:
        manifest = json.loads(image.manifest)
        layers = [layer["digest"] for layer in manifest.get("layers") or ()]
        config = manifest["config"]["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise ImageError(f"{image.reference}: {image.manifest_digest} is no manifest") from error
    references = {"containerd.io/gc.ref.content.config": config}
    references |= {f"containerd.io/gc.ref.content.l.{i}": each for i, each in enumerate(layers)}
    top = {f"containerd.io/gc.ref.snapshot.{snapshotter}": chain_ids[-1]} if chain_ids else {}
    return [
        (image.config_digest, image.config, top),
        (image.manifest_digest, image.manifest, references),
    ]
