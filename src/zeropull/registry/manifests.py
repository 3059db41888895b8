"""Reads manifests, indexes and configs (OCI image-spec 1.1, Docker schema 2). No I/O.

As wide as containerd's own reading (core/images/image.go): members that are null or missing are
empty, and only what is used has to be right. What is not known here is `UnreadableImage`, which
leaves the image to containerd; what can never run is `ImageError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from zeropull.errors import ImageError, InvalidInput, UnreadableImage
from zeropull.oci.digests import check_digest
from zeropull.oci.images import Descriptor
from zeropull.oci.platforms import Platform

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPTED = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})

_OCI_LAYERS = (
    "application/vnd.oci.image.layer.v1",
    "application/vnd.oci.image.layer.nondistributable.v1",
)
_DOCKER_LAYERS = (
    "application/vnd.docker.image.rootfs.diff",
    "application/vnd.docker.image.rootfs.foreign.diff",
)
# A layer's bytes say how they are compressed; its type only has to say that it is a tar. Foreign
# and nondistributable ones are read from the registry like all others, if it has them.
_LAYERS = frozenset(
    {f"{name}.tar{packed}" for name in _OCI_LAYERS for packed in ("", "+gzip", "+zstd")}
    | {f"{name}.tar{packed}" for name in _DOCKER_LAYERS for packed in ("", ".gzip", ".zstd")}
)
_CONFIGS = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
        # Of pushes before Docker 1.10's types, and of small tools: the content has to be a config.
        "application/octet-stream",
        "application/json",
        "text/plain",
        "",
    }
)
_MAX_LAYERS = 512  # overlayfs takes 500 lowers; more is absurd, and a way to exhaust us

_T = TypeVar("_T")


class _Platform(msgspec.Struct):
    architecture: str | None = None
    os: str | None = None
    variant: str | None = None


class _Descriptor(msgspec.Struct, rename="camel"):
    digest: str | None = None
    size: int | None = None
    media_type: str | None = None
    platform: _Platform | None = None


class _Document(msgspec.Struct, rename="camel"):
    """What manifests and indexes have between them."""

    schema_version: int | None = None
    media_type: str | None = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    fs_layers: list[msgspec.Raw] | None = None


class _RootFs(msgspec.Struct):
    diff_ids: list[str] | None = None


class _Config(msgspec.Struct):
    architecture: str | None = None
    os: str | None = None
    variant: str | None = None
    rootfs: _RootFs | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of an index. `platform` is None where the index does not say it: then the config
    does. `size` of the descriptor is 0 where it is missing: the digest proves the content."""

    platform: Platform | None
    descriptor: Descriptor


@dataclass(frozen=True, slots=True)
class Index:
    """Entries whose digest is none of ours are left out: nobody could ask for them."""

    entries: tuple[IndexEntry, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """What is needed of an image's config. An empty platform is one that it does not state."""

    platform: Platform
    diff_ids: tuple[str, ...]


def read_manifest(reference: str, content: bytes, content_type: str) -> Manifest | Index:
    """Tell an image from an index by its own media type, else by the response's, else by shape.

    Raises:
        ImageError: neither, or an image that cannot run.
        UnreadableImage: containerd may know more of it.
    """
    document = _decode(reference, "manifest", content, _Document)
    media_type = document.media_type or content_type.partition(";")[0].strip()
    if document.fs_layers is not None or document.schema_version not in {2, None}:
        raise UnreadableImage(
            f"image {reference}: its manifest has schema version {document.schema_version}; "
            "only version 2 can be used: push the image again with a current tool"
        )
    if document.manifests and (document.layers or document.config):
        raise ImageError(
            f"image {reference}: its manifest is an image and an index at once: push it again"
        )
    if document.manifests is not None and (
        media_type in INDEXES or document.manifests or document.config is None
    ):
        return Index(tuple(_entries(document.manifests)))
    if media_type in INDEXES:
        return Index(())
    return _image(reference, document, media_type)


def read_config(reference: str, content: bytes, layers: Sequence[Descriptor]) -> Config:
    """The platform and the diff IDs of an image's config.

    Raises:
        UnreadableImage: another number of layers than the manifest's, or no config at all.
    """
    config = _decode(reference, "config", content, _Config)
    diff_ids = (config.rootfs.diff_ids if config.rootfs else None) or []
    if len(diff_ids) != len(layers):
        raise UnreadableImage(
            f"image {reference}: its config names {len(diff_ids)} layers, "
            f"its manifest {len(layers)}: push it again"
        )
    for diff_id in diff_ids:
        _checked(reference, diff_id)
    platform = Platform(config.os or "", config.architecture or "", config.variant or "")
    return Config(platform, tuple(diff_ids))


def _image(reference: str, document: _Document, media_type: str) -> Manifest:
    if document.config is None:
        raise UnreadableImage(
            f"image {reference}: its manifest ({media_type or 'no type'}) has no config"
        )
    layers = document.layers or []
    config_type = document.config.media_type or ""
    if config_type not in _CONFIGS:
        raise ImageError(f"{reference} is an artifact of type {config_type!r}, not an image")
    if len(layers) > _MAX_LAYERS:
        raise ImageError(f"image {reference} has {len(layers)} layers, more than {_MAX_LAYERS}")
    for layer in layers:
        if layer.media_type not in _LAYERS:
            raise UnreadableImage(
                f"image {reference}: layer {layer.digest} is of type {layer.media_type!r}; "
                "plain, gzip and zstd tar layers can be used"
            )
    return Manifest(
        media_type or OCI_MANIFEST,
        _described(reference, document.config, 0),
        tuple(_described(reference, layer, None) for layer in layers),
    )


def _entries(manifests: Sequence[_Descriptor]) -> list[IndexEntry]:
    entries = []
    for item in manifests:
        try:
            digest = check_digest(item.digest or "")
        except InvalidInput:
            continue
        given = item.platform or _Platform()
        platform = Platform(given.os or "", given.architecture or "", given.variant or "")
        descriptor = Descriptor(item.media_type or "", digest, item.size or 0)
        entries.append(IndexEntry(platform if platform.is_known else None, descriptor))
    return entries


def _described(reference: str, descriptor: _Descriptor, default_size: int | None) -> Descriptor:
    digest = _checked(reference, descriptor.digest or "")
    size = default_size if descriptor.size is None else descriptor.size
    if size is None or size < 0:
        raise UnreadableImage(f"image {reference}: {digest} has size {descriptor.size}")
    return Descriptor(descriptor.media_type or "", digest, size)


def _checked(reference: str, digest: str) -> str:
    try:
        return check_digest(digest)
    except InvalidInput as error:
        raise UnreadableImage(f"image {reference}: {error}") from error


def _decode(reference: str, what: str, content: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UnreadableImage(f"image {reference}: its {what} is not valid: {error}") from error
