"""Asks a registry what a reference means (OCI distribution-spec 1.1).

The small calls block, in threads of the client's own; blobs are read through
`zeropull.registry.blobs`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit

from zeropull import __version__
from zeropull.backoff import Backoff
from zeropull.errors import (
    AccessDenied,
    ImageError,
    IntegrityError,
    NotFound,
    Unavailable,
    ZeropullError,
)
from zeropull.linux.processor import native_platform
from zeropull.oci.digests import digest_of
from zeropull.oci.images import Descriptor, ResolvedImage
from zeropull.oci.platforms import Platform
from zeropull.oci.references import Reference, parse_reference
from zeropull.registry.auth import Authorizer
from zeropull.registry.choosing import Document, find_image
from zeropull.registry.connecting import Route
from zeropull.registry.endpoints import Endpoint, endpoints_of
from zeropull.registry.http import BUSY, Answer, request, retry_after
from zeropull.registry.manifests import ACCEPTED
from zeropull.registry.source import BlobSource
from zeropull.resources.sources import RegistryAccess
from zeropull.telemetry import get_logger

DEFAULT_USER_AGENT = f"zeropull/{__version__}"
DEFAULT_PATIENCE_S = 60.0
_MAX_MANIFEST_BYTES = 4 << 20  # what the distribution specification lets registries refuse
_MAX_CONFIG_BYTES = 8 << 20
_PAUSES = Backoff(first_s=0.5, limit_s=10.0)
# A registry that drips holds its own threads, and leaves some for the others.
_THREADS = 32
_THREADS_PER_HOST = 4

_T = TypeVar("_T")

log = get_logger(__name__)


class RegistryClient:
    """Resolves references and hands out what is needed to read their blobs.

    `access(host)` says how to reach a host as it stands in references, None = without credentials;
    it is asked again when credentials did not work. `patience_s`: a registry that answers that it
    is busy, or breaks off, is asked again for so long, at the times that it names itself.
    """

    def __init__(
        self,
        access: Callable[[str], RegistryAccess | None],
        *,
        user_agent: str = DEFAULT_USER_AGENT,
        patience_s: float = DEFAULT_PATIENCE_S,
    ) -> None:
        self._access = access
        self._user_agent = user_agent
        self._patience_s = patience_s
        self._authorizers: dict[str, Authorizer] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="registry")
        self._places: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(_THREADS_PER_HOST)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._authorizers.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

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
        return await self._patiently(
            parsed.registry, lambda: self._resolve(reference, parsed, parsed.wanted, wanted)
        )

    async def fetch_manifest_image(self, reference: str, manifest_digest: str) -> ResolvedImage:
        """The image with this digest, wherever the reference's tag points by now.

        For a digest that `resolve` gave: the platform is not looked at again, since an index may
        say another one than the config.

        Raises:
            As `resolve`, without PlatformError.
        """
        parsed = parse_reference(reference)
        return await self._patiently(
            parsed.registry, lambda: self._resolve(reference, parsed, manifest_digest, None)
        )

    async def blob_source(self, reference: str, layer: Descriptor) -> BlobSource:
        """What a thread or process needs to read one blob."""
        parsed = parse_reference(reference)
        return await self._in_thread(parsed.registry, lambda: self._blob_source(parsed, layer))

    async def _patiently(self, host: str, work: Callable[[], _T]) -> _T:
        """Repeat what failed because the registry is busy, while there is patience left."""
        deadline_s = time.monotonic() + self._patience_s
        failures = 0
        while True:
            try:
                return await self._in_thread(host, work)
            except Unavailable as error:
                failures += 1
                if error.retry_after_s is None:
                    raise
                pause_s = max(error.retry_after_s, _PAUSES.after(failures))
                if time.monotonic() + pause_s > deadline_s:
                    raise
                await asyncio.sleep(pause_s)

    async def _in_thread(self, host: str, work: Callable[[], _T]) -> _T:
        async with self._places[host]:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _blob_source(self, reference: Reference, layer: Descriptor) -> BlobSource:
        sources = [
            self._source_at(endpoint, reference.repository, layer)
            for endpoint in endpoints_of(reference.registry, self._access(reference.registry))
        ]
        return dataclasses.replace(sources[0], others=tuple(sources[1:]))

    def _source_at(self, endpoint: Endpoint, repository: str, layer: Descriptor) -> BlobSource:
        authorizer = self._authorizers.get(endpoint.host)
        return BlobSource(
            url=endpoint.url(repository, f"blobs/{layer.digest}"),
            host=endpoint.host,
            repository=repository,
            digest=layer.digest,
            size=layer.size,
            access=endpoint.access,
            authorization=authorizer.header(repository) if authorizer else None,
            user_agent=self._user_agent,
        )

    def _resolve(
        self, text: str, reference: Reference, wanted: str, platform: Platform | None
    ) -> ResolvedImage:
        endpoints = endpoints_of(reference.registry, self._access(reference.registry))
        documents = _DocumentsOf(self, text, reference, endpoints)
        return find_image(text, documents.manifest(wanted), platform, documents)

    def ask(
        self, text: str, endpoint: Endpoint, repository: str, path: str, max_bytes: int
    ) -> Answer:
        """A manifest, an index or a config from one server, with the credentials that it wants.

        Raises:
            NotFound, AccessDenied, Unavailable: as it answers; busy ones with `retry_after_s`.
        """
        url = endpoint.url(repository, path)
        authorizer = self._authorizer(endpoint)
        header = authorizer.header(repository)
        answer = self._send(url, endpoint, header, max_bytes)
        for _ in range(2):
            if answer.status == 401:
                challenge = answer.headers.get("www-authenticate", "")
                header = authorizer.answer(repository, challenge, header)
            elif answer.status != 403 or (renewed := authorizer.renew(repository, header)) is None:
                break
            else:
                header = renewed
            answer = self._send(url, endpoint, header, max_bytes)
        if answer.status != 200:
            raise _refused(text, endpoint.host, answer)
        return answer

    def _send(
        self, url: str, endpoint: Endpoint, authorization: str | None, max_bytes: int
    ) -> Answer:
        headers = {"User-Agent": self._user_agent, "Accept": ", ".join(ACCEPTED)}
        if authorization is not None:
            headers["Authorization"] = authorization
        route = Route.of(urlsplit(url).netloc, endpoint.access)
        return request("GET", url, headers, route=route, max_bytes=max_bytes)

    def _authorizer(self, endpoint: Endpoint) -> Authorizer:
        host = endpoint.host
        if host not in self._authorizers:
            # A mirror's credentials come with the registry's; those of others are looked up anew.
            given = endpoint.access if endpoint.namespace else None
            self._authorizers[host] = Authorizer(
                host, lambda: given or self._access(host), self._user_agent
            )
        return self._authorizers[host]


def _refused(text: str, host: str, answer: Answer) -> ZeropullError:
    match answer.status:
        case 404:
            return NotFound(
                f"image {text} is not in registry {host}: "
                "check the repository and the tag, or push it"
            )
        case 401 | 403:
            return AccessDenied(
                f"registry {host} refuses image {text} ({answer.status}): "
                "check the credentials and the rights to pull"
            )
    later_s = retry_after(answer.headers.get("retry-after"))
    if answer.status == 429:
        return Unavailable(
            f"registry {host} limits our rate for image {text}: try later", retry_after_s=later_s
        )
    return Unavailable(
        f"registry {host} answers {answer.status} for image {text}",
        retry_after_s=later_s if answer.status in BUSY else None,
    )


class _DocumentsOf:
    """The documents of one image (`zeropull.registry.choosing.Documents`), each from the first of
    the endpoints that gives it whole."""

    def __init__(
        self,
        client: RegistryClient,
        text: str,
        reference: Reference,
        endpoints: Sequence[Endpoint],
    ) -> None:
        self._client = client
        self._text = text
        self._reference = reference
        self._endpoints = endpoints

    def manifest(self, digest: str) -> Document:
        """Also of a tag, whose own digest is only known from the bytes."""
        path = f"manifests/{digest}"
        answer = self._get(path, _MAX_MANIFEST_BYTES, digest if ":" in digest else None)
        return Document(answer.body, answer.headers.get("content-type", ""))

    def config(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > _MAX_CONFIG_BYTES:
            raise ImageError(
                f"image {self._text}: a config of {descriptor.size:,} bytes is too large"
            )
        digest = descriptor.digest
        return self._get(f"blobs/{digest}", _MAX_CONFIG_BYTES, digest).body

    def _get(self, path: str, max_bytes: int, digest: str | None) -> Answer:
        for endpoint in self._endpoints[:-1]:
            try:
                return self._get_from(endpoint, path, max_bytes, digest)
            except (NotFound, AccessDenied, Unavailable, IntegrityError) as error:
                log.warning("mirror is passed over", mirror=endpoint.base, reason=error.reason)
        return self._get_from(self._endpoints[-1], path, max_bytes, digest)

    def _get_from(
        self, endpoint: Endpoint, path: str, max_bytes: int, digest: str | None
    ) -> Answer:
        repository = self._reference.repository
        answer = self._client.ask(self._text, endpoint, repository, path, max_bytes)
        # Of a tag: a header that differs from the bytes tells of damage.
        expected = digest or answer.headers.get("docker-content-digest")
        actual = digest_of(answer.body)
        if expected is not None and expected.startswith("sha256:") and actual != expected:
            what = "config" if path.startswith("blobs/") else "manifest"
            raise IntegrityError(
                f"image {self._text}: registry {endpoint.host} sent a {what} with digest {actual} "
                f"for {expected}"
            )
        return answer
