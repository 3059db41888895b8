"""Requests to S3 that keep keys as they are, and what its answers say of an object.

Keys are opaque: `//`, `.`, a slash or a tab at the end are parts of a name. obstore, through which
most bytes come, cleans them like paths, which would be another object's name; so whatever is asked
about objects is asked here, and odd keys are read here.
Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations.html.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_plus, urlsplit

import aiohttp
from yarl import URL

from zeropull.backoff import Backoff
from zeropull.errors import (
    AccessDenied,
    ArtifactError,
    NotFound,
    Unavailable,
    ZeropullError,
)
from zeropull.modelstore.s3_signing import Query, encode_path, encode_query, signed_headers
from zeropull.resources.sources import StoreAccess, check_store

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})  # where plain HTTP is allowed
_DEFAULT_REGION = "us-east-1"
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=10, sock_read=30)
_SMALL_TIMEOUT_S = 60.0  # an answer that is read whole
_MAX_SMALL_BYTES = 16 << 20
_MAX_KEYS = 1_000_000  # under one prefix
_CHUNK_BYTES = 1 << 20
_TRIES = 3
_PAUSES = Backoff(first_s=0.2, limit_s=5.0)
_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` have names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Listed:
    key: str
    size: int
    etag: str | None
    storage_class: str


class S3Requests:
    """One bucket. `close` at the end."""

    def __init__(self, bucket: str, access: StoreAccess) -> None:
        check_store(bucket, access)
        self._bucket = bucket
        self._access = access
        self._region = access.region or _DEFAULT_REGION
        self._store = access.endpoint or "Amazon S3"
        if access.endpoint is not None:
            self._base = f"{access.endpoint.rstrip('/')}/{bucket}"
        else:
            self._base = f"https://{bucket}.s3.{self._region}.amazonaws.com"
        self._session: aiohttp.ClientSession | None = None

    async def head(self, key: str) -> Mapping[str, str]:
        """The headers of an object, its checksums among them."""
        answer = await self._ask("HEAD", key, headers={"x-amz-checksum-mode": "ENABLED"})
        if answer.status != 200:
            # A HEAD's answer has no body, in which the reason would be.
            told = await self._ask("GET", key, headers={"Range": "bytes=0-0"})
            raise self._refused(key, told if told.status >= 300 else answer)
        return answer.headers

    async def listed(self, prefix: str) -> list[Listed]:
        """Every object whose key begins with `prefix`."""
        found: list[Listed] = []
        token: str | None = None
        while True:
            query = [("list-type", "2"), ("prefix", prefix), ("encoding-type", "url")]
            if token is not None:
                query.append(("continuation-token", token))
            answer = await self._ask("GET", "", query)
            if answer.status != 200:
                raise self._refused(prefix, answer)
            page, token = self._page(answer.body)
            found += page
            if token is None:
                return found
            if len(found) > _MAX_KEYS:
                raise ArtifactError(
                    f"s3://{self._bucket}/{prefix} has more than {_MAX_KEYS:,} keys"
                )

    async def read(self, key: str, start: int, end: int, etag: str | None) -> AsyncIterator[bytes]:
        """The bytes of the object from `start` up to `end`, while it has this ETag."""
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        if etag is not None:
            headers["If-Match"] = etag
        try:
            async with self._send("GET", key, (), headers) as response:
                if response.status != 206 and not (response.status == 200 and start == 0):
                    body = await response.content.read(_CHUNK_BYTES)
                    raise self._refused(key, Answer(response.status, _lower(response), body))
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self._unreached(key, error) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(
        self,
        method: str,
        key: str,
        query: Query = (),
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """A small answer, asked for again while the store is busy."""
        failures = 0
        while True:
            failures += 1
            try:
                async with (
                    asyncio.timeout(_SMALL_TIMEOUT_S),
                    self._send(method, key, query, headers or {}) as response,
                ):
                    body = await response.content.read(_MAX_SMALL_BYTES)
                    while part := await response.content.read(_MAX_SMALL_BYTES):
                        body += part
                        if len(body) > _MAX_SMALL_BYTES:
                            raise ValueError("its answer is too large")
                    answer = Answer(response.status, _lower(response), body)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                if failures >= _TRIES or not isinstance(error, aiohttp.ClientError):
                    raise self._unreached(key, error) from error
            else:
                if answer.status not in {429, 500, 502, 503, 504} or failures >= _TRIES:
                    return answer
            await asyncio.sleep(_PAUSES.after(failures))

    def _send(
        self, method: str, key: str, query: Query, headers: Mapping[str, str]
    ) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=_TIMEOUT,
                read_bufsize=_CHUNK_BYTES,
                auto_decompress=False,
                skip_auto_headers=("User-Agent",),
            )
        url = f"{self._base}/{encode_path(key)}"
        if query:
            url += f"?{encode_query(query)}"
        signed = signed_headers(method, url, headers, self._access, self._region, now_s=time.time())
        # `encoded`: the URL is taken as it is, dots and slashes included.
        return self._session.request(
            method,
            URL(url, encoded=True),
            headers=signed,
            allow_redirects=False,
            proxy=proxy_of(url),
        )

    def _page(self, body: bytes) -> tuple[list[Listed], str | None]:
        try:
            root = ElementTree.fromstring(body)  # noqa: S314 - expat refuses bombs of entities
        except ElementTree.ParseError as error:
            raise Unavailable(
                f"{self._store} lists s3://{self._bucket}/ as no XML: {error}"
            ) from error
        encoded = _find(root, "EncodingType") == "url"
        found = []
        for item in root:
            if item.tag.removeprefix(_NAMESPACE) == "Contents":
                key = _find(item, "Key") or ""
                size = _find(item, "Size") or ""
                if not size.isdigit():
                    raise Unavailable(f"{self._store} lists {key!r} without a size")
                found.append(
                    Listed(
                        unquote_plus(key) if encoded else key,
                        int(size),
                        _find(item, "ETag"),
                        _find(item, "StorageClass") or "",
                    )
                )
        more = _find(root, "IsTruncated") == "true"
        return found, _find(root, "NextContinuationToken") if more else None

    def _unreached(self, key: str, error: BaseException) -> Unavailable:
        said = str(error).partition("\n")[0][:300] or type(error).__name__
        name = f"s3://{self._bucket}/{key}"
        return Unavailable(f"{self._store} does not answer for {name}: {said}")

    def _refused(self, key: str, answer: Answer) -> ZeropullError:
        name = f"s3://{self._bucket}/{key}"
        code = _code(answer.body)
        said = f"{answer.status} {code}".strip()
        if code == "InvalidObjectState":
            return archived(name, answer.headers.get("x-amz-storage-class", ""))
        if answer.status == 404:
            return NotFound(f"{name} does not exist in {self._store}: check the bucket and the key")
        region = answer.headers.get("x-amz-bucket-region", self._region)
        if region != self._region:
            return AccessDenied(
                f"bucket {self._bucket} is in region {region}, and {self._region} was asked: set "
                "region for it in the configuration"
            )
        if answer.status in {401, 403} or code in _CREDENTIALS:
            return AccessDenied(
                f"{self._store} refuses {name} ({said}): "
                + _CREDENTIALS.get(code, "check the credentials configured for the bucket")
            )
        if answer.status in {412, 416}:
            return ArtifactError(
                f"{name} was changed while it was downloaded, or is not the version that was "
                "asked for: deploy again, and do not overwrite artifacts that are in use"
            )
        return Unavailable(f"{self._store} answers {said} for {name}", retry_after_s=0.0)


# What S3 says of credentials, and what helps.
_CREDENTIALS = {
    "ExpiredToken": "the session token of the bucket has expired: configure a new one",
    "InvalidAccessKeyId": "it does not know the access_key_id: check the bucket's credentials",
    "SignatureDoesNotMatch": "the secret_access_key is wrong: check the bucket's credentials",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it; the credentials may be right",
    "InvalidToken": "the session token is not valid: check the bucket's credentials",
}


def proxy_of(url: str) -> str | None:
    """What HTTPS_PROXY, HTTP_PROXY and NO_PROXY say; this machine is never reached through one."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in LOOPBACK or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def archived(name: str, storage_class: str) -> ArtifactError:
    """The object lies in an archive, from which nobody can read at once."""
    return ArtifactError(
        f"{name} is archived ({storage_class or 'it cannot be read at once'}): restore it, or copy "
        "it to another storage class"
    )


def _lower(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _find(element: ElementTree.Element, name: str) -> str | None:
    """Also of stores that leave the namespace out."""
    found = element.find(f"{_NAMESPACE}{name}")
    found = element.find(name) if found is None else found
    return None if found is None else found.text


def _code(body: bytes) -> str:
    try:
        return _find(ElementTree.fromstring(body), "Code") or ""  # noqa: S314
    except ElementTree.ParseError:
        return ""
