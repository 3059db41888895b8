"""Which servers are asked for an image: the mirrors of its registry, then the registry itself."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from zeropull.registry.addresses import is_plain
from zeropull.resources.sources import RegistryAccess

_HUB = "docker.io"
_HUB_SERVER = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server. `host` is how credentials know it, `base` the URL that ends in /v2."""

    host: str
    base: str
    access: RegistryAccess | None
    namespace: str = ""  # of a mirror: the registry that it stands for

    def url(self, repository: str, path: str) -> str:
        """`path` is `manifests/...` or `blobs/...`."""
        query = f"?ns={quote(self.namespace)}" if self.namespace else ""
        return f"{self.base}/{repository}/{path}{query}"


def endpoints_of(registry: str, access: RegistryAccess | None) -> tuple[Endpoint, ...]:
    """In the order in which they are asked."""
    mirrors = access.mirrors if access is not None else ()
    found = [
        Endpoint(urlsplit(mirror.url).netloc, _base(mirror.url), mirror.access, registry)
        for mirror in mirrors
    ]
    server = _HUB_SERVER if registry == _HUB else registry
    scheme = "http" if is_plain(server, access) else "https"
    return (*found, Endpoint(registry, f"{scheme}://{server}/v2", access))


def _base(url: str) -> str:
    """As containerd's hosts.toml: the path of a mirror ends in /v2, which need not be written."""
    plain = url.rstrip("/")
    return plain if plain.endswith("/v2") else f"{plain}/v2"
