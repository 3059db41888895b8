"""Asks a registry what a reference means (OCI distribution-spec 1.1).

The small calls block, in a thread each; blobs are read through `zeropull.registry.blobs`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from zeropull.errors import AccessDenied, ImageError, IntegrityError, NotFound, Unavailable
from zeropull.linux.processor import native_platform
from zeropull.oci.digests import digest_of
from zeropull.oci.images import Descriptor, ResolvedImage
from zeropull.oci.platforms import Platform
from zeropull.oci.references import Reference, parse_reference
from zeropull.registry.auth import Authorizer
from zeropull.registry.choosing import Document, find_image
from zeropull.registry.http import Answer, is_loopback, request, split_host
from zeropull.registry.manifests import ACCEPTED
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

    async def resolve(self, reference: str, *, platform: str | None = None) -> ResolvedImage:
        """The image that the reference means now, for one platform, every digest verified.

        `platform` None: this machine's, with the highest level of amd64 that its processor has.

        Raises:
            InvalidInput: not a reference.
            NotFound: the registry has no such repository, tag or digest.
            AccessDenied, Unavailable: it does not let us in, or cannot be reached.
            ImageError: it is not an image.
            PlatformError: it is not one for this platform.
            UnreadableImage: only containerd may be able to read it.
            IntegrityError: bytes that do not match their digest.
        """
        parsed = parse_reference(reference)
        wanted = Platform.parse(platform or native_platform())
        return await asyncio.to_thread(self._resolve, reference, parsed, parsed.wanted, wanted)

    async def fetch_manifest_image(self, reference: str, manifest_digest: str) -> ResolvedImage:
        """The image with this digest, wherever the reference's tag points by now.

        For a digest that `resolve` gave: the platform is not looked at again, since an index may
        say another one than the config.

        Raises:
            As `resolve`, without PlatformError.
        """
        parsed = parse_reference(reference)
        return await asyncio.to_thread(self._resolve, reference, parsed, manifest_digest, None)

    async def blob_source(self, reference: str, layer: Descriptor) -> BlobSource:
        """What a thread or process needs to read one blob."""
        return await asyncio.to_thread(self._blob_source, reference, layer)

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
        self, text: str, reference: Reference, wanted: str, platform: Platform | None
    ) -> ResolvedImage:
        documents = _DocumentsOf(self, text, reference, self._access(reference.registry))
        return find_image(text, documents.manifest(wanted), platform, documents)

    def get(
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


class _DocumentsOf:
    """The documents of one image at its registry (`zeropull.registry.choosing.Documents`)."""

    def __init__(
        self, client: RegistryClient, text: str, reference: Reference, access: RegistryAccess | None
    ) -> None:
        self._client = client
        self._text = text
        self._reference = reference
        self._access = access

    def manifest(self, digest: str) -> Document:
        """Also of a tag, whose own digest is only known from the bytes."""
        answer = self._get(f"manifests/{digest}", _MAX_MANIFEST_BYTES)
        # A header that differs from the bytes tells of damage.
        expected = digest if ":" in digest else answer.headers.get("docker-content-digest")
        actual = digest_of(answer.body)
        if expected is not None and expected.startswith("sha256:") and actual != expected:
            raise IntegrityError(
                f"image {self._text}: registry {self._reference.registry} sent a manifest with "
                f"digest {actual} for {expected}"
            )
        return Document(answer.body, answer.headers.get("content-type", ""))

    def config(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > _MAX_CONFIG_BYTES:
            raise ImageError(
                f"image {self._text}: a config of {descriptor.size:,} bytes is too large"
            )
        answer = self._get(f"blobs/{descriptor.digest}", _MAX_CONFIG_BYTES)
        if digest_of(answer.body) != descriptor.digest:
            raise IntegrityError(
                f"image {self._text}: the config that registry {self._reference.registry} sent "
                f"has digest {digest_of(answer.body)}, and its manifest says {descriptor.digest}"
            )
        return answer.body

    def _get(self, path: str, max_bytes: int) -> Answer:
        return self._client.get(self._text, self._reference, self._access, path, max_bytes)
