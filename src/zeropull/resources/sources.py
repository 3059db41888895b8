"""Where images and model artifacts come from, and how to be let in there."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from zeropull.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class RegistryAccess:
    """How to reach one registry host (as it stands in the reference, with port).

    `plain_http` None: plain HTTP on loopback, HTTPS elsewhere. `ca`, `client_cert` and `client_key`
    are PEM texts. `is_configured`: the operator has named this host, so it may have any address.
    `problem` says why there are no credentials although there might be some.
    """

    host: str
    plain_http: bool | None = None
    username: str | None = None
    password: str | None = None  # or an identity/registry token, see `token`
    token: str | None = None
    ca: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    skip_verify: bool = False
    is_configured: bool = False
    problem: str | None = None
    mirrors: tuple[RegistryMirror, ...] = ()


@dataclass(frozen=True, slots=True)
class RegistryMirror:
    """`url` is asked before the registry itself; `access` is how its own host is reached."""

    url: str
    access: RegistryAccess


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """How to reach the object store of one bucket; `directory` maps a bucket to a local folder."""

    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    directory: str | None = None
    etag_is_md5: bool = True  # of objects that were stored in one part; False: it is not compared


def check_store(bucket: str, access: StoreAccess) -> None:
    """Raises ConfigurationError for settings that no store could be asked with."""
    endpoint = access.endpoint
    if endpoint is not None:
        try:
            parts = urlsplit(endpoint)
            is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_url = False
        if not is_url or "?" in endpoint or endpoint != endpoint.strip():
            raise ConfigurationError(
                f"buckets.{bucket}.endpoint = {endpoint!r}: expected a URL like "
                "http://127.0.0.1:9000"
            )
    for name in ("region", "access_key_id", "secret_access_key", "session_token"):
        value = getattr(access, name)
        if value is not None and not (value.isprintable() and value == value.strip()):
            raise ConfigurationError(
                f"buckets.{bucket}.{name} has a line end, or a space at its beginning or end: copy "
                "it again"
            )


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
