"""What manifests and configs say, and where on the node they are found before a registry is asked.

Documents that were seen once are kept, so that a further copy, or a restart, asks nobody.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Sequence

from zeropull.controlapi.messages import ImageAssignment, VolumeMount
from zeropull.errors import ImageError, ZeropullError
from zeropull.nodeagent.images.catalog import Catalog
from zeropull.nodeagent.records import AgentRecords
from zeropull.oci.digests import chain_ids, digest_of, hex_of
from zeropull.oci.images import Descriptor, ResolvedImage
from zeropull.oci.references import parse_reference
from zeropull.resources.sources import RegistryAccess

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class ImageDocuments:
    """Manifests and configs of this node's images, by digest."""

    def __init__(self, records: AgentRecords, catalog: Catalog) -> None:
        self._records = records
        self._catalog = catalog

    async def resolve(
        self, image: ImageAssignment, volumes: Sequence[VolumeMount]
    ) -> ResolvedImage | None:
        """Manifest and config without a registry: from the node, then from a volume."""
        manifest = await self._find(image.manifest_digest, volumes)
        if manifest is None:
            return None
        parsed = parse_manifest(manifest)
        config = await self._find(parsed.config_digest, volumes)
        if config is None:
            return None
        return dataclasses.replace(
            parsed, reference=image.reference, config=config, diff_ids=diff_ids_of(config)
        )

    def keep(self, resolved: ResolvedImage) -> None:
        self._records.save_blob(resolved.manifest_digest, resolved.manifest)
        self._records.save_blob(resolved.config_digest, resolved.config)

    def kept(self, manifest_digest: str) -> ResolvedImage | None:
        """What `keep` has kept, None when there is nothing; without a reference."""
        manifest = self._records.load_blob(manifest_digest)
        if manifest is None:
            return None
        parsed = parse_manifest(manifest)
        config = self._records.load_blob(parsed.config_digest)
        if config is None:
            return None
        return dataclasses.replace(parsed, config=config, diff_ids=diff_ids_of(config))

    def chain_ids(self, manifest_digest: str) -> tuple[str, ...]:
        """The image's chain IDs, () until its documents are on the node."""
        kept = self.kept(manifest_digest)
        return tuple(chain_ids(list(kept.diff_ids))) if kept is not None else ()

    def own_chain_ids(self, manifest_digest: str) -> set[str]:
        """The image's chain IDs that no other image whose documents are here has."""
        others = (self._kept_or_none(d) for d in self._records.blobs() if d != manifest_digest)
        shared = {chain for kept in others if kept for chain in chain_ids(list(kept.diff_ids))}
        return set(self.chain_ids(manifest_digest)) - shared

    def forget(self, manifest_digest: str) -> None:
        """Drop the image's documents. A config that another manifest shares is fetched again."""
        kept = self.kept(manifest_digest)
        if kept is not None:
            self._records.remove_blob(manifest_digest)
            self._records.remove_blob(kept.config_digest)

    def _kept_or_none(self, digest: str) -> ResolvedImage | None:
        try:
            return self.kept(digest)
        except ImageError:
            return None  # a config, say

    async def _find(self, digest: str, volumes: Sequence[VolumeMount]) -> bytes | None:
        content = self._records.load_blob(digest)
        if content is None:
            content = await self._catalog.volume_blob(volumes, digest)
        return content


def registry_access(image: ImageAssignment) -> Callable[[str], RegistryAccess | None]:
    """The lookup that a RegistryClient asks: credentials for the image's own host only."""
    given = image.registry
    return lambda host: given if given is not None and given.host == host else None


def pinned_name(image: ImageAssignment) -> str:
    """host/repository@digest: a moved tag on the same node is another name."""
    reference = parse_reference(image.reference)
    return f"{reference.registry}/{reference.repository}@{image.manifest_digest}"


def parse_manifest(manifest: bytes) -> ResolvedImage:
    """What a manifest alone says; config and diff IDs stay empty.

    Raises:
        ImageError: it is no image manifest.
    """
    try:
        document = json.loads(manifest)
        layers = tuple(
            Descriptor(each["mediaType"], each["digest"], each["size"])
            for each in document.get("layers") or ()
        )
        config_digest = document["config"]["digest"]
        media_type = document.get("mediaType") or "application/vnd.oci.image.manifest.v1+json"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ImageError(f"{digest_of(manifest)} is no image manifest: {error!r}") from error
    return ResolvedImage(
        "", digest_of(manifest), media_type, manifest, config_digest, b"", layers, ()
    )


def config_digest_of(manifest: bytes) -> str:
    """All that is needed of a manifest that containerd has read by itself.

    Raises:
        ImageError: it names no config.
    """
    try:
        digest = json.loads(manifest)["config"]["digest"]
        hex_of(digest)
    except (ValueError, KeyError, TypeError, RecursionError, ZeropullError) as error:
        raise ImageError(f"{digest_of(manifest)} names no config: {error!r}") from error
    return str(digest)


def diff_ids_of(config: bytes) -> tuple[str, ...]:
    """Raises:
    ImageError: it is no image config.
    """
    try:
        return tuple(json.loads(config)["rootfs"]["diff_ids"] or ())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ImageError(f"the image's config lists no diff IDs: {error!r}") from error


def platform_here() -> str:
    return f"linux/{_ARCHITECTURES.get(platform.machine(), platform.machine())}"
