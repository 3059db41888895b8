"""An image of some registry as one of the benchmark's: its blobs are copied once, and kept."""

from __future__ import annotations

import asyncio
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from isal import igzip_threaded
from zstandard import ZstdDecompressor

from tests.fixtures.images import Blob, Image
from zeropull.oci.digests import hex_of
from zeropull.oci.images import ResolvedImage
from zeropull.registry.blobs import BlobSource, open_blob
from zeropull.registry.client import RegistryClient
from zeropull.registry.credentials import load_docker_config

_CONFIG_MEDIA_TYPES = {
    "application/vnd.docker.distribution.manifest.v2+json": (
        "application/vnd.docker.container.image.v1+json"
    ),
}
_DOCKER_CONFIG = Path.home() / ".docker/config.json"


def copy_image(reference: str, folder: Path, say: Callable[[str], None]) -> tuple[Image, int, int]:
    """The image, the bytes of its layers' tars, and the number of their regular files. Credentials
    come from Docker's own configuration.

    Raises:
        ZeropullError: as the registry says.
    """
    return asyncio.run(_copy(reference, folder, say))


async def _copy(reference: str, folder: Path, say: Callable[[str], None]) -> tuple[Image, int, int]:
    folder.mkdir(parents=True, exist_ok=True)
    lookup = load_docker_config(_DOCKER_CONFIG) if _DOCKER_CONFIG.exists() else lambda _: None
    async with RegistryClient(lookup, user_agent="zeropull-bench") as client:
        image = await client.resolve(reference)
        paths = [folder / hex_of(layer.digest) for layer in image.layers]
        for layer, path in zip(image.layers, paths, strict=True):
            if not path.exists():
                say(f"copying {layer.size / 1e6:.0f} MB of {reference}")
                await asyncio.to_thread(_fetch, await client.blob_source(reference, layer), path)
    unpacked = files = 0
    for path in paths:
        counted = await asyncio.to_thread(_count, path)
        unpacked, files = unpacked + counted[0], files + counted[1]
    return _as_pushed(image, paths), unpacked, files


def _fetch(source: BlobSource, path: Path) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file, open_blob(source) as parts:
        for part in parts:
            file.write(part)
    partial.replace(path)


def _count(path: Path) -> tuple[int, int]:
    """Bytes and regular files of a layer's tar; remembered beside it."""
    record = path.with_suffix(".json")
    if not record.exists():
        files = 0
        with path.open("rb") as packed:
            head = packed.read(4)
            packed.seek(0)
            if head[:2] == b"\x1f\x8b":
                source = igzip_threaded.open(packed, "rb")  # type: ignore[no-untyped-call]
            elif head == b"\x28\xb5\x2f\xfd":
                source = ZstdDecompressor().stream_reader(packed, read_across_frames=True)
            else:
                source = packed
            with tarfile.open(fileobj=source, mode="r|") as archive:
                files = sum(1 for member in archive if member.isreg())
                size = archive.offset
        record.write_text(json.dumps([size, files]))
    size, files = json.loads(record.read_text())
    return int(size), int(files)


def _as_pushed(image: ResolvedImage, paths: list[Path]) -> Image:
    """Byte for byte the same documents, so that the digests stay."""
    manifest_type = image.manifest_media_type
    config_type = _CONFIG_MEDIA_TYPES.get(manifest_type, "application/vnd.oci.image.config.v1+json")
    return Image(
        Blob(manifest_type, image.manifest_digest, len(image.manifest), image.manifest),
        Blob(config_type, image.config_digest, len(image.config), image.config),
        tuple(
            Blob(layer.media_type, layer.digest, layer.size, path, diff_id)
            for layer, path, diff_id in zip(image.layers, paths, image.diff_ids, strict=True)
        ),
    )
