"""Objects of one bucket of an S3-compatible store: asked about through `s3_requests`, and read
through obstore wherever it can name them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore import exceptions
from obstore.store import S3Store

from zeropull.errors import (
    AccessDenied,
    ArtifactError,
    NotFound,
    Unavailable,
    ZeropullError,
)
from zeropull.modelstore.integrity import known_digest
from zeropull.modelstore.protocol import Digest, ObjectFacts
from zeropull.modelstore.s3_requests import S3Requests, archived
from zeropull.resources.sources import StoreAccess

if TYPE_CHECKING:
    from obstore.store import S3Config

_CHUNK_BYTES = 1 << 20
_DEFAULT_REGION = "us-east-1"
# obstore's own retries are short: the download resumes at the byte where it broke off by itself.
_MAX_RETRIES = 2
# Classes that cannot be read until the object was restored.
_ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


class S3Objects:
    """`access` None: the store of AWS without credentials."""

    def __init__(self, bucket: str, access: StoreAccess | None) -> None:
        self._bucket = bucket
        self._access = access or StoreAccess()
        self._endpoint = self._access.endpoint or "Amazon S3"
        self._requests = S3Requests(bucket, self._access)
        self._store: S3Store | None = None

    async def head(self, key: str) -> ObjectFacts:
        headers = await self._head(key)
        length = headers.get("content-length", "")
        if not length.isdigit():
            raise Unavailable(f"{self._endpoint} does not say the size of {self._name(key)}")
        return ObjectFacts(key, int(length), headers.get("etag"))

    async def list_under(self, prefix: str) -> list[ObjectFacts]:
        listed = await self._requests.listed(prefix)
        for one in listed:
            if one.storage_class in _ARCHIVES:
                await self._head(one.key)  # it may have been restored
        facts = [ObjectFacts(one.key, one.size, one.etag) for one in listed]
        return sorted(facts, key=lambda each: each.key)

    async def digest(self, facts: ObjectFacts) -> Digest | None:
        headers = await self._head(facts.key)
        if headers.get("etag") != facts.etag:
            raise changed(self._name(facts.key))
        return known_digest(headers, facts.etag, etag_is_md5=self._access.etag_is_md5)

    async def stream(self, facts: ObjectFacts, start: int, end: int) -> AsyncIterator[bytes]:
        if not _is_plain(facts.key):
            async for chunk in self._requests.read(facts.key, start, end, facts.etag):
                yield chunk
            return
        with self._translated(facts.key):
            options: obstore.GetOptions = {"range": (start, end)}
            if facts.etag is not None:
                options["if_match"] = facts.etag
            self._store = self._store or _open(self._bucket, self._access)
            result = await obstore.get_async(self._store, facts.key, options=options)
            if result.meta["size"] != facts.size:
                raise changed(self._name(facts.key))
            async for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
                yield chunk

    async def close(self) -> None:
        await self._requests.close()

    async def _head(self, key: str) -> Mapping[str, str]:
        headers = await self._requests.head(key)
        storage_class = headers.get("x-amz-storage-class", "")
        is_restored = 'ongoing-request="false"' in headers.get("x-amz-restore", "")
        if headers.get("x-amz-archive-status") or (storage_class in _ARCHIVES and not is_restored):
            raise archived(self._name(key), storage_class)
        return headers

    def _name(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        name = self._name(key)
        try:
            yield
        except ZeropullError:
            raise
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            raise NotFound(
                f"{name} does not exist in {self._endpoint}: check the bucket and the key"
            ) from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            if "InvalidObjectState" in str(error):
                raise archived(name, "") from error
            raise AccessDenied(
                f"{self._endpoint} refuses {name}: check the credentials configured for the bucket"
            ) from error
        except exceptions.PreconditionError as error:
            raise changed(name) from error
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise Unavailable(
                f"{self._endpoint} does not answer for {name}: {brief(error)}"
            ) from error
        except BaseException as error:
            # A panic of obstore is none of Python's exceptions.
            if type(error).__name__ != "PanicException":
                raise
            raise Unavailable(
                f"reading {name} from {self._endpoint} broke off in obstore: {brief(error)}"
            ) from error


def changed(name: str) -> ArtifactError:
    return ArtifactError(
        f"{name} was changed while it was downloaded, or is not the version that was asked for: "
        "deploy again, and do not overwrite artifacts that are in use"
    )


def brief(error: BaseException) -> str:
    """The first line of a library's message: what follows are internals, at times secrets."""
    return str(error).partition("\n")[0][:300]


def _is_plain(key: str) -> bool:
    """Whether obstore asks for this very key, and not for a path that it has made of it."""
    return not any(part in {"", ".", ".."} for part in key.split("/")) and key.isprintable()


def _open(bucket: str, access: StoreAccess) -> S3Store:
    config: S3Config = {"region": access.region or _DEFAULT_REGION}
    if access.endpoint is not None:
        config["endpoint"] = access.endpoint
    if access.access_key_id is None:
        config["skip_signature"] = True
    else:
        config["access_key_id"] = access.access_key_id
        config["secret_access_key"] = access.secret_access_key or ""
        if access.session_token is not None:
            config["session_token"] = access.session_token
    return S3Store(
        bucket,
        config=config,
        virtual_hosted_style_request=access.endpoint is None,
        client_options={
            "allow_http": bool(access.endpoint and access.endpoint.startswith("http://")),
            "connect_timeout": timedelta(seconds=10),
            "timeout": timedelta(seconds=120),
        },
        retry_config={"max_retries": _MAX_RETRIES, "retry_timeout": timedelta(seconds=10)},
    )
