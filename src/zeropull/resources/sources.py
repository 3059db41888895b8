"""Where images and model artifacts come from, and how to be let in there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RegistryAccess:
    """How to reach one registry host (as it stands in the reference, with port)."""

    host: str
    plain_http: bool = False
    username: str | None = None
    password: str | None = None  # or an identity/registry token, see `token`
    token: str | None = None


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """How to reach the object store of one bucket; `directory` maps a bucket to a local folder."""

    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    directory: str | None = None


@dataclass(frozen=True, slots=True)
class ModelArtifact:
    """One source under /opt/ml. `kind`: "object" (single object) or "prefix".

    `compression`: "none" or "gzip" (gzip = a tar.gz that is extracted). `target` is the directory
    in the container, by default /opt/ml/model. `access` is None for https:// URLs.
    """

    url: str
    kind: str = "object"
    compression: str = "none"
    target: str = "/opt/ml/model"
    etag: str | None = None
    access: StoreAccess | None = None
