"""One object at an https:// URL, with ranges where the server has them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urljoin, urlsplit

import aiohttp

from zeropull.errors import AccessDenied, ArtifactError, NotFound, Unavailable, ZeropullError
from zeropull.modelstore.protocol import Digest, ObjectFacts
from zeropull.modelstore.s3 import brief, changed
from zeropull.modelstore.s3_requests import LOOPBACK, proxy_of

_CHUNK_BYTES = 1 << 20
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=10, sock_read=30)
_IDENTITY = {"Accept-Encoding": "identity"}  # ranges and lengths count the object's own bytes


class HttpsObject:
    """The URL may carry a signature in its query, so it never stands whole in a message."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._url = url
        self._proxy = proxy_of(url)
        self._name = f"{parts.scheme}://{parts.hostname}{parts.path}"
        redirects = aiohttp.TraceConfig()
        redirects.on_request_redirect.append(self._check_redirect)
        self._session = aiohttp.ClientSession(
            timeout=_TIMEOUT,
            read_bufsize=_CHUNK_BYTES,
            auto_decompress=False,
            trace_configs=[redirects],
        )

    async def head(self, key: str) -> ObjectFacts:
        # A signed URL is signed for GET alone, so the first byte is asked for instead of HEAD.
        headers = _IDENTITY | {"Range": "bytes=0-0"}
        with self._translated():
            async with self._session.get(self._url, headers=headers, proxy=self._proxy) as response:
                self._check(response)
                etag = response.headers.get("ETag")
                if response.status == 206:
                    total = response.headers.get("Content-Range", "").rpartition("/")[2]
                    if not total.isdigit():
                        raise ArtifactError(f"{self._name}: its server does not say its length")
                    return ObjectFacts(key, int(total), etag)
                if response.content_length is None:
                    raise ArtifactError(f"{self._name}: its server does not say its length")
                return ObjectFacts(key, response.content_length, etag, has_ranges=False)

    async def list_under(self, prefix: str) -> list[ObjectFacts]:
        raise ArtifactError(f"{self._name} is a single object: a prefix needs an s3:// URL")

    async def digest(self, facts: ObjectFacts) -> Digest | None:
        return None

    async def stream(self, facts: ObjectFacts, start: int, end: int) -> AsyncIterator[bytes]:
        headers = dict(_IDENTITY)
        if facts.has_ranges:
            headers["Range"] = f"bytes={start}-{end - 1}"
        if facts.etag is not None and not facts.etag.startswith("W/"):
            headers["If-Match"] = facts.etag
        with self._translated():
            async with self._session.get(self._url, headers=headers, proxy=self._proxy) as response:
                self._check(response)
                skip = start
                if response.status == 206:
                    expected = f"bytes {start}-{end - 1}/{facts.size}"
                    if response.headers.get("Content-Range") != expected:
                        raise changed(self._name)
                    skip = 0
                elif response.content_length not in {None, facts.size}:
                    raise changed(self._name)
                if facts.etag is not None and response.headers.get("ETag") != facts.etag:
                    raise changed(self._name)
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    if skip >= len(chunk):
                        skip -= len(chunk)
                        continue
                    yield chunk[skip:]
                    skip = 0

    async def close(self) -> None:
        await self._session.close()

    async def _check_redirect(
        self,
        session: aiohttp.ClientSession,
        context: object,
        answer: aiohttp.TraceRequestRedirectParams,
    ) -> None:
        """Before it is followed: what is read over HTTPS must not come over plain HTTP after all,
        nor from a service that only this machine can reach."""
        location = answer.response.headers.get("Location", "")
        target = urlsplit(urljoin(str(answer.url), location))
        here = urlsplit(self._url).scheme == "http" and target.hostname in LOOPBACK
        if target.scheme != "https" and not (target.scheme == "http" and here):
            raise AccessDenied(
                f"{self._name} redirects to {target.scheme}://{target.hostname}, which is not "
                "https and is refused"
            )

    def _check(self, response: aiohttp.ClientResponse) -> None:
        match response.status:
            case 200 | 206:
                return
            case 404 | 410:
                raise NotFound(f"{self._name} does not exist: check the URL")
            case 401 | 403:
                raise AccessDenied(f"{self._name} is refused ({response.status}): sign it anew")
            case 412 | 416:
                raise changed(self._name)
            case status:
                raise Unavailable(f"{self._name}: its server answers {status}")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ZeropullError:
            raise
        except ValueError as error:  # an address that is none, where a redirect leads
            raise Unavailable(f"{self._name} cannot be read: {brief(error)}") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise AccessDenied(
                f"{self._name}: its server's certificate is not trusted here: install its "
                "authority's certificate on this machine"
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = brief(error) or type(error).__name__
            raise Unavailable(f"{self._name} cannot be read: {said}") from error
