"""Which services of the host's loopback an endpoint's nodes must reach. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from urllib.parse import urlsplit

from zeropull.errors import InvalidInput
from zeropull.oci.references import parse_reference
from zeropull.resources.components import InferenceComponent
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.settings import BucketSettings, RegistrySettings


def loopback_ports(
    endpoint: Endpoint,
    buckets: Mapping[str, BucketSettings],
    components: Iterable[InferenceComponent] = (),
    registries: Mapping[str, RegistrySettings] = MappingProxyType({}),
) -> frozenset[int]:
    """TCP ports of registries, their mirrors and model stores on 127.0.0.1 or localhost."""
    containers = [
        container
        for deployment in (endpoint.current, endpoint.pending)
        for variant in (deployment.variants if deployment else ())
        for container in variant.containers
    ]
    containers += [v.spec.container for c in components for v in c.versions]
    found: set[int | None] = set()
    for container in containers:
        found |= _registry_ports(container.image, registries)
        for source in container.sources:
            scheme, _, rest = source.url.partition("://")
            bucket = buckets.get(rest.partition("/")[0])
            if scheme != "s3":
                found.add(_url_port(source.url))
            elif bucket is not None and bucket.endpoint:
                found.add(_url_port(bucket.endpoint))
    return frozenset(port for port in found if port)


def _registry_ports(image: str, registries: Mapping[str, RegistrySettings]) -> set[int | None]:
    try:
        registry = parse_reference(image).registry
    except InvalidInput:
        return set()
    settings = registries.get(registry)
    mirrors = settings.mirrors if settings is not None else ()
    return {_url_port(f"//{registry}", default=80), *(_url_port(url) for url in mirrors)}


def _url_port(text: str, default: int | None = None) -> int | None:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return None  # whoever reads from it says what is wrong with it
    if not _is_loopback(url.hostname or ""):
        return None
    return port or default or (443 if url.scheme == "https" else 80)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
