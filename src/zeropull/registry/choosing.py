"""Finds the one image of a platform behind a manifest or an index, however indexes are nested.

Follows containerd's choice (core/images/image.go, `Manifest`): entries that state a platform go by
it, the best first; entries that state none are asked for their config, after all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from zeropull.errors import ImageError, NotFound, PlatformError, UnreadableImage
from zeropull.oci.digests import digest_of
from zeropull.oci.images import Descriptor, ResolvedImage
from zeropull.oci.platforms import Platform
from zeropull.registry.manifests import (
    Index,
    IndexEntry,
    Manifest,
    read_config,
    read_manifest,
)

_MAX_DOCUMENTS = 64  # manifests and indexes that are fetched for one image
_MAX_DEPTH = 8  # of indexes in one another


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index as the registry sent it."""

    content: bytes
    content_type: str


class Documents(Protocol):
    """What the documents of one image are fetched through, each proved by its digest.

    Both raise NotFound, AccessDenied, Unavailable and IntegrityError.
    """

    def manifest(self, digest: str) -> Document:
        """A manifest or an index."""

    def config(self, descriptor: Descriptor) -> bytes:
        """An image's config."""


def find_image(
    reference: str, top: Document, wanted: Platform | None, documents: Documents
) -> ResolvedImage:
    """The image that `top` is or leads to. `wanted` None: `top` was chosen before.

    Raises:
        PlatformError: with what is offered instead.
        ImageError: nothing here is an image.
        UnreadableImage: with the digest of the document that is not known here.
    """
    search = _Search(reference, wanted, documents)
    read = search.read(top)
    if isinstance(read, Manifest):
        return search.image(top, read, wanted)
    found = search.inside(read, None, 0)
    if found is None:
        raise search.nothing_found()
    return found


class _Search:
    def __init__(self, reference: str, wanted: Platform | None, documents: Documents) -> None:
        self._reference = reference
        self._wanted = wanted
        self._documents = documents
        self._fetched = 0
        self._offered: set[str] = set()
        self._refusal: ImageError | None = None

    def read(self, document: Document) -> Manifest | Index:
        try:
            return read_manifest(self._reference, document.content, document.content_type)
        except UnreadableImage as error:
            raise _with_digest(error, document) from error

    def image(
        self, document: Document, manifest: Manifest, wanted: Platform | None
    ) -> ResolvedImage:
        """`wanted` None: whatever its config says, since an index has said it."""
        content = self._documents.config(manifest.config)
        try:
            config = read_config(self._reference, content, manifest.layers)
        except UnreadableImage as error:
            raise _with_digest(error, document) from error
        # `crane append` without a base states no platform; containerd takes such an image.
        if wanted is not None and config.platform.is_known and not wanted.fits(config.platform):
            self._offered.add(str(config.platform))
            raise PlatformError(
                f"image {self._reference} is built for {config.platform}, and this needs "
                f"{self._shown(wanted)}: build it for {self._shown(wanted)}"
            )
        return ResolvedImage(
            reference=self._reference,
            manifest_digest=digest_of(document.content),
            manifest_media_type=manifest.media_type,
            manifest=document.content,
            config_digest=manifest.config.digest,
            config=content,
            layers=manifest.layers,
            diff_ids=config.diff_ids,
        )

    def inside(self, index: Index, stated: Platform | None, depth: int) -> ResolvedImage | None:
        """The best image of an index. `stated`: what the index above says of all that is in it."""
        if depth >= _MAX_DEPTH:
            raise ImageError(f"image {self._reference}: indexes lead to indexes, {depth} deep")
        for entry in self._in_order(index):
            platform = entry.platform or stated
            if (found := self._entry(entry, platform, depth)) is not None:
                return found
        return None

    def nothing_found(self) -> ImageError:
        if self._refusal is not None and not self._offered:
            return self._refusal
        wanted = self._shown(self._wanted) if self._wanted is not None else "this machine"
        return PlatformError(
            f"image {self._reference} is not built for {wanted}, only for "
            f"{', '.join(sorted(self._offered)) or 'nothing'}: build it for {wanted}"
        )

    def _shown(self, wanted: Platform) -> str:
        """With its level only where that is what something else has too much of."""
        plain = Platform(wanted.os, wanted.architecture)
        levels = (offered.startswith(f"{plain}/") for offered in self._offered)
        return str(wanted if any(levels) else plain)

    def _in_order(self, index: Index) -> Iterator[IndexEntry]:
        """Those that fit, the best first; then those that do not say for what they are."""
        ranked = []
        for number, entry in enumerate(index.entries):
            rank = self._rank(entry.platform)
            if rank is not None:
                ranked.append((rank, number, entry))
            elif entry.platform is not None and entry.platform.os != "unknown":
                # Attestations stand in indexes as unknown/unknown.
                self._offered.add(str(entry.platform))
        for _, _, entry in sorted(ranked, key=lambda each: each[:2]):
            yield entry
        yield from (entry for entry in index.entries if entry.platform is None)

    def _rank(self, platform: Platform | None) -> int | None:
        if platform is None:
            return None
        return self._wanted.rank(platform) if self._wanted is not None else 0

    def _entry(
        self, entry: IndexEntry, platform: Platform | None, depth: int
    ) -> ResolvedImage | None:
        self._fetched += 1
        if self._fetched > _MAX_DOCUMENTS:
            raise ImageError(
                f"image {self._reference}: its indexes lead to more than {_MAX_DOCUMENTS} others"
            )
        try:
            document = self._documents.manifest(entry.descriptor.digest)
            read = self.read(document)
            if isinstance(read, Index):
                return self.inside(read, platform, depth + 1)
            return self.image(document, read, self._wanted if platform is None else None)
        except (ImageError, NotFound) as error:
            if platform is not None:
                raise
            # It said of itself nothing at all: a signature, say, or something that was deleted.
            if isinstance(error, ImageError) and not isinstance(error, PlatformError):
                self._refusal = self._refusal or error
            return None


def _with_digest(error: UnreadableImage, document: Document) -> UnreadableImage:
    return UnreadableImage(str(error), manifest_digest=digest_of(document.content))
