"""Objects of one bucket of an S3-compatible store, through obstore."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore import exceptions
from obstore.store import S3Store

from zeropull.errors import AccessDenied, ArtifactError, NotFound, Unavailable, ZeropullError
from zeropull.modelstore.protocol import ObjectFacts
from zeropull.resources.sources import StoreAccess

if TYPE_CHECKING:
    from obstore.store import S3Config

_CHUNK_BYTES = 1 << 20
_DEFAULT_REGION = "us-east-1"
# obstore's own retries are short: the download resumes at the byte where it broke off by itself.
_MAX_RETRIES = 2


class S3Objects:
    """`access` None: the store of AWS without credentials."""

    def __init__(self, bucket: str, access: StoreAccess | None) -> None:
        self._bucket = bucket
        self._access = access or StoreAccess()
        self._endpoint = self._access.endpoint or "Amazon S3"
        self._store = _open(bucket, self._access)

    async def head(self, key: str) -> ObjectFacts:
        with self._translated(key):
            found = await obstore.head_async(self._store, key)
        return ObjectFacts(key, int(found["size"]), found["e_tag"])

    async def list_under(self, prefix: str) -> list[ObjectFacts]:
        listed: list[ObjectFacts] = []
        with self._translated(prefix):
            # obstore matches whole path segments, so the prefix is given without its last slash.
            async for page in obstore.list(self._store, prefix.rstrip("/") or None):
                listed += [ObjectFacts(one["path"], one["size"], one["e_tag"]) for one in page]
        return sorted(listed, key=lambda facts: facts.key)

    async def stream(self, facts: ObjectFacts, start: int, end: int) -> AsyncIterator[bytes]:
        with self._translated(facts.key):
            options: obstore.GetOptions = {"range": (start, end)}
            if facts.etag is not None:
                options["if_match"] = facts.etag
            result = await obstore.get_async(self._store, facts.key, options=options)
            if result.meta["size"] != facts.size:
                raise changed(f"s3://{self._bucket}/{facts.key}")
            async for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
                yield chunk

    async def close(self) -> None:
        pass

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        name = f"s3://{self._bucket}/{key}"
        try:
            yield
        except ZeropullError:
            raise
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            raise NotFound(
                f"{name} does not exist in {self._endpoint}: check the bucket and the key"
            ) from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise AccessDenied(
                f"{self._endpoint} refuses {name}: check the credentials configured for the bucket"
            ) from error
        except exceptions.PreconditionError as error:
            raise changed(name) from error
        except (exceptions.BaseError, OSError) as error:
            raise Unavailable(
                f"{self._endpoint} does not answer for {name}: {brief(error)}"
            ) from error


def changed(name: str) -> ArtifactError:
    return ArtifactError(
        f"{name} was changed while it was downloaded, or is not the version that was asked for: "
        "deploy again, and do not overwrite artifacts that are in use"
    )


def brief(error: BaseException) -> str:
    """The first line of a library's message: what follows are internals, at times secrets."""
    return str(error).partition("\n")[0][:300]


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
