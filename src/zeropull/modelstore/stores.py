"""Chooses the store that an artifact's URL names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from zeropull.errors import ArtifactError
from zeropull.modelstore.directory import DirectoryObjects
from zeropull.modelstore.https import HttpsObject
from zeropull.modelstore.protocol import ObjectSource
from zeropull.modelstore.s3 import S3Objects
from zeropull.modelstore.s3_requests import LOOPBACK
from zeropull.resources.sources import ModelArtifact


def open_source(artifact: ModelArtifact) -> tuple[ObjectSource, str]:
    """The store, and the key or prefix in it.

    Raises:
        ArtifactError: another scheme, or no bucket or key.
    """
    try:
        parts = urlsplit(artifact.url)
        host = parts.hostname or ""
    except ValueError as error:
        shown = artifact.url.partition("?")[0]
        raise ArtifactError(f"model URL {shown!r} is not valid: {error}") from error
    if parts.scheme == "s3":
        bucket, _, key = artifact.url.removeprefix("s3://").partition("/")
        if not bucket or (artifact.kind == "object" and not key):
            raise ArtifactError(f"{artifact.url!r} names no object: s3://BUCKET/KEY is expected")
        if artifact.access is not None and artifact.access.directory is not None:
            return DirectoryObjects(Path(artifact.access.directory)), key
        return S3Objects(bucket, artifact.access), key
    if parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK):
        return HttpsObject(artifact.url), parts.path.lstrip("/")
    raise ArtifactError(
        f"model URL {artifact.url.partition('?')[0]!r}: only s3:// and https:// can be read"
    )
