"""Asks a registry what a reference means (OCI distribution-spec 1.1).

The small calls block, in a thread each; blobs are read through `zeropull.registry.blobs`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from zeropull.errors import AccessDenied, ImageError, IntegrityError, NotFound, Unavailable
from zeropull.oci.digests import digest_of
from zeropull.oci.images import Descriptor, ResolvedImage
from zeropull.oci.references import Reference, parse_reference
from zeropull.registry.auth import Authorizer
from zeropull.registry.blobs import DEFAULT_CONNECTIONS, DEFAULT_PART_BYTES, open_blob
from zeropull.registry.http import Answer, is_loopback, request, split_host
from zeropull.registry.manifests import (
    ACCEPTED,
    Index,
    Platform,
    choose,
    read_diff_ids,
    read_manifest,
)
from zeropull.registry.source import BlobSource
from zeropull.resources.sources import RegistryAccess

DEFAULT_USER_AGENT = "zeropull/0.1"
_MAX_MANIFEST_BYTES = 4 << 20  # what the distribution specification lets registries refuse
_MAX_CONFIG_BYTES = 8 << 20
_HUB_HOST = "registry-1.docker.io"


class RegistryClient:
    """Resolves references and hands out what is needed to read their blobs.

    `access(host)` says how to reach a host as it stands in references, None = without credentials;
    it is asked again when credentials did not work. Hosts on loopback are spoken to in plain HTTP.
    """

    def __init__(
        self,
        access: Callable[[str], RegistryAccess | None],
        *,
        user_agent: str = DEFAULT_USER_AGENT,
    ) -> None:
        self._access = access
        self._user_agent = user_agent
        self._authorizers: dict[str, Authorizer] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._authorizers.clear()

    async def resolve(self, reference: str, *, platform: str = "linux/amd64") -> ResolvedImage:
        """The image that the reference means now, for one platform, every digest verified.

        Raises:
            InvalidInput: not a reference.
            NotFound: the registry has no such repository, tag or digest.
            AccessDenied, Unavailable: it does not let us in, or cannot be reached.
            ImageError: it is not an image.
            PlatformError: it is not one for this platform.
            IntegrityError: bytes that do not match their digest.
        """
        parsed = parse_reference(reference)
        return await asyncio.to_thread(
            self._resolve, reference, parsed, parsed.wanted, Platform.parse(platform)
        )

    async def fetch_manifest_image(
        self, reference: str, manifest_digest: str, *, platform: str = "linux/amd64"
    ) -> ResolvedImage:
        """The image with this digest, wherever the reference's tag points by now."""
        parsed = parse_reference(reference)
        return await asyncio.to_thread(
            self._resolve, reference, parsed, manifest_digest, Platform.parse(platform)
        )

    async def blob_source(self, reference: str, layer: Descriptor) -> BlobSource:
        """What a thread or process needs to read one blob."""
        return await asyncio.to_thread(self._blob_source, reference, layer)

    def blob_stream(
        self,
        reference: str,
        layer: Descriptor,
        *,
        connections: int = DEFAULT_CONNECTIONS,
        part_bytes: int = DEFAULT_PART_BYTES,
        stop: threading.Event | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> AbstractContextManager[Iterator[memoryview]]:
        """`open_blob` for a caller that runs in a thread and has the client at hand. It blocks."""
        return open_blob(
            self._blob_source(reference, layer),
            connections=connections,
            part_bytes=part_bytes,
            stop=stop,
            on_bytes=on_bytes,
        )

    def _blob_source(self, reference: str, layer: Descriptor) -> BlobSource:
        parsed = parse_reference(reference)
        access = self._access(parsed.registry)
        authorizer = self._authorizers.get(parsed.registry)
        return BlobSource(
            url=self._url(parsed, access, f"blobs/{layer.digest}"),
            host=parsed.registry,
            repository=parsed.repository,
            digest=layer.digest,
            size=layer.size,
            access=access,
            authorization=authorizer.header(parsed.repository) if authorizer else None,
            user_agent=self._user_agent,
        )

    def _resolve(
        self, text: str, reference: Reference, wanted: str, platform: Platform
    ) -> ResolvedImage:
        access = self._access(reference.registry)
        content, content_type = self._manifest(text, reference, access, wanted)
        manifest = read_manifest(text, content, content_type)
        if isinstance(manifest, Index):
            chosen = choose(text, manifest, platform)
            content, content_type = self._manifest(text, reference, access, chosen.digest)
            manifest = read_manifest(text, content, content_type)
            if isinstance(manifest, Index):
                raise ImageError(f"image {text}: its index leads to another index")
        config = self._config(text, reference, access, manifest.config)
        diff_ids = read_diff_ids(text, config, platform, manifest.layers)
        return ResolvedImage(
            reference=text,
            manifest_digest=digest_of(content),
            manifest_media_type=manifest.media_type,
            manifest=content,
            config_digest=manifest.config.digest,
            config=config,
            layers=manifest.layers,
            diff_ids=diff_ids,
        )

    def _manifest(
        self, text: str, reference: Reference, access: RegistryAccess | None, wanted: str
    ) -> tuple[bytes, str]:
        answer = self._get(text, reference, access, f"manifests/{wanted}", _MAX_MANIFEST_BYTES)
        # A tag's own digest is only known from the bytes; a header that differs tells of damage.
        expected = wanted if ":" in wanted else answer.headers.get("docker-content-digest")
        actual = digest_of(answer.body)
        if expected is not None and expected.startswith("sha256:") and actual != expected:
            raise IntegrityError(
                f"image {text}: registry {reference.registry} sent a manifest with digest {actual} "
                f"for {expected}"
            )
        return answer.body, answer.headers.get("content-type", "")

    def _config(
        self, text: str, reference: Reference, access: RegistryAccess | None, config: Descriptor
    ) -> bytes:
        if config.size > _MAX_CONFIG_BYTES:
            raise ImageError(f"image {text}: a config of {config.size:,} bytes is too large")
        answer = self._get(text, reference, access, f"blobs/{config.digest}", _MAX_CONFIG_BYTES)
        if digest_of(answer.body) != config.digest:
            raise IntegrityError(
                f"image {text}: the config that registry {reference.registry} sent has digest "
                f"{digest_of(answer.body)}, and its manifest says {config.digest}"
            )
        return answer.body

    def _get(
        self,
        text: str,
        reference: Reference,
        access: RegistryAccess | None,
        path: str,
        max_bytes: int,
    ) -> Answer:
        url = self._url(reference, access, path)
        authorizer = self._authorizer(reference.registry)
        header = authorizer.header(reference.repository)
        answer = self._ask(url, header, max_bytes)
        tries = 0
        while answer.status == 401 and tries < 2:
            tries += 1
            challenge = answer.headers.get("www-authenticate", "")
            header = authorizer.answer(reference.repository, challenge, header)
            answer = self._ask(url, header, max_bytes)
        host = reference.registry
        match answer.status:
            case 200:
                return answer
            case 404:
                raise NotFound(
                    f"image {text} is not in registry {host}: "
                    "check the repository and the tag, or push it"
                )
            case 401 | 403:
                raise AccessDenied(
                    f"registry {host} refuses image {text} ({answer.status}): "
                    "check the credentials and the rights to pull"
                )
            case 429:
                raise Unavailable(f"registry {host} limits our rate for image {text}: try later")
            case status:
                raise Unavailable(f"registry {host} answers {status} for image {text}")

    def _ask(self, url: str, authorization: str | None, max_bytes: int) -> Answer:
        headers = {"User-Agent": self._user_agent, "Accept": ", ".join(ACCEPTED)}
        if authorization is not None:
            headers["Authorization"] = authorization
        return request("GET", url, headers, max_bytes=max_bytes)

    def _authorizer(self, host: str) -> Authorizer:
        if host not in self._authorizers:
            self._authorizers[host] = Authorizer(host, lambda: self._access(host), self._user_agent)
        return self._authorizers[host]

    def _url(self, reference: Reference, access: RegistryAccess | None, path: str) -> str:
        host = _HUB_HOST if reference.registry == "docker.io" else reference.registry
        plain = (access is not None and access.plain_http) or is_loopback(split_host(host))
        return f"{'http' if plain else 'https'}://{host}/v2/{reference.repository}/{path}"
