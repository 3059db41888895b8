"""Reads manifests, indexes and configs (OCI image-spec 1.1, Docker schema 2). No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from zeropull.errors import ImageError, InvalidInput, PlatformError
from zeropull.oci.digests import check_digest
from zeropull.oci.images import Descriptor

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPTED = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})

_LAYERS = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
)
_CONFIGS = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
_MAX_LAYERS = 512  # overlayfs takes 500 lowers; more is absurd, and a way to exhaust us

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Platform:
    """`linux/amd64`, `linux/arm64/v8`; an empty variant fits every variant."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        parts = [*text.split("/"), ""]
        return cls(parts[0], parts[1], parts[2])

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def fits(self, offered: Platform) -> bool:
        return (
            (self.os, self.architecture) == (offered.os, offered.architecture)
            and (not self.variant or offered.variant in {"", self.variant})
        )  # fmt: skip


class _Platform(msgspec.Struct):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class _Descriptor(msgspec.Struct, rename="camel"):
    digest: str
    size: int
    media_type: str = ""
    platform: _Platform | None = None


class _Document(msgspec.Struct, rename="camel"):
    """What manifests and indexes have between them."""

    schema_version: int = 0
    media_type: str = ""
    config: _Descriptor | None = None
    layers: list[_Descriptor] = []
    manifests: list[_Descriptor] | None = None


class _RootFs(msgspec.Struct):
    diff_ids: list[str] = []


class _Config(msgspec.Struct):
    architecture: str = ""
    os: str = ""
    variant: str = ""
    rootfs: _RootFs = msgspec.field(default_factory=_RootFs)


@dataclass(frozen=True, slots=True)
class Manifest:
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Index:
    entries: tuple[tuple[Platform, Descriptor], ...]


def read_manifest(reference: str, content: bytes, content_type: str) -> Manifest | Index:
    """Tell an image from an index by its own media type, else by the response's, else by shape.

    Raises:
        ImageError: neither, or an image that cannot run.
    """
    document = _decode(reference, "manifest", content, _Document)
    media_type = document.media_type or content_type.partition(";")[0].strip()
    if document.schema_version != 2:
        raise ImageError(
            f"image {reference}: its manifest has schema version {document.schema_version}; "
            "only version 2 can be used: push the image again with a current tool"
        )
    if media_type in INDEXES or (media_type not in ACCEPTED and document.manifests is not None):
        return Index(tuple(_entries(reference, document.manifests or [])))
    if document.config is None:
        raise ImageError(
            f"image {reference}: its manifest ({media_type or 'no type'}) has no config"
        )
    if document.config.media_type not in _CONFIGS:
        raise ImageError(
            f"{reference} is an artifact of type {document.config.media_type!r}, not an image"
        )
    if len(document.layers) > _MAX_LAYERS:
        raise ImageError(
            f"image {reference} has {len(document.layers)} layers, more than {_MAX_LAYERS}"
        )
    for layer in document.layers:
        if layer.media_type not in _LAYERS:
            raise ImageError(
                f"image {reference}: layer {layer.digest} is of type {layer.media_type!r}; "
                "plain, gzip and zstd tar layers can be used"
            )
    layers = tuple(_described(reference, layer) for layer in document.layers)
    return Manifest(media_type or OCI_MANIFEST, _described(reference, document.config), layers)


def choose(reference: str, index: Index, wanted: Platform) -> Descriptor:
    """The first manifest of the index that fits.

    Raises:
        PlatformError: with what is offered instead.
    """
    for platform, descriptor in index.entries:
        if wanted.fits(platform):
            return descriptor
    # Attestations stand in indexes as unknown/unknown.
    offered = sorted({str(platform) for platform, _ in index.entries if platform.os != "unknown"})
    raise PlatformError(
        f"image {reference} is not built for {wanted}, only for {', '.join(offered) or 'nothing'}: "
        f"build it for {wanted}"
    )


def read_diff_ids(
    reference: str, content: bytes, wanted: Platform, layers: Sequence[Descriptor]
) -> tuple[str, ...]:
    """The diff IDs of a config that fits the platform and the manifest's layers.

    Raises:
        PlatformError: another platform.
        ImageError: another number of layers.
    """
    config = _decode(reference, "config", content, _Config)
    platform = Platform(config.os, config.architecture, config.variant)
    if not wanted.fits(Platform(platform.os, platform.architecture, wanted.variant)):
        raise PlatformError(
            f"image {reference} is built for {platform}, and this needs {wanted}: "
            f"build it for {wanted}"
        )
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) != len(layers):
        raise ImageError(
            f"image {reference}: its config names {len(diff_ids)} layers, "
            f"its manifest {len(layers)}: push it again"
        )
    for diff_id in diff_ids:
        _checked(reference, diff_id)
    return tuple(diff_ids)


def _entries(
    reference: str, manifests: Sequence[_Descriptor]
) -> Sequence[tuple[Platform, Descriptor]]:
    entries = []
    for item in manifests:
        offered = item.platform or _Platform()
        platform = Platform(offered.os, offered.architecture, offered.variant)
        entries.append((platform, _described(reference, item)))
    return entries


def _described(reference: str, descriptor: _Descriptor) -> Descriptor:
    if descriptor.size < 0:
        raise ImageError(f"image {reference}: {descriptor.digest} has size {descriptor.size}")
    digest = _checked(reference, descriptor.digest)
    return Descriptor(descriptor.media_type, digest, descriptor.size)


def _checked(reference: str, digest: str) -> str:
    try:
        return check_digest(digest)
    except InvalidInput as error:
        raise ImageError(f"image {reference}: {error}") from error


def _decode(reference: str, what: str, content: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ImageError(f"image {reference}: its {what} is not valid: {error}") from error
