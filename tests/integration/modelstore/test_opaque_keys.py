"""Objects of a store that keeps keys as they are, and tells what it knows of their bytes."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import threading
import urllib.parse
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape

import google_crc32c
import pytest

from tests.fixtures.raw_tar import END, file
from zeropull.errors import (
    AccessDenied,
    ArtifactError,
    ConfigurationError,
    IntegrityError,
    NotFound,
    Unavailable,
    ZeropullError,
)
from zeropull.modelstore import fetch_artifact
from zeropull.resources.sources import ModelArtifact, StoreAccess


@dataclass
class Object:
    content: bytes
    headers: dict[str, str] = field(default_factory=dict)
    sent: bytes | None = None  # what arrives in place of the content

    @property
    def etag(self) -> str:
        return self.headers.get("ETag", f'"{hashlib.md5(self.content).hexdigest()}"')


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        asked = urllib.parse.parse_qs(query, keep_blank_values=True)
        self.server.seen.append(f"{self.command} {self.path}")
        if self.server.refusals:
            status, code = self.server.refusals.pop(0)
            return self.send(status, f"<Error><Code>{code}</Code></Error>".encode())
        if "list-type" in asked:
            return self.send(200, self.listing(asked))
        found = self.server.objects.get(urllib.parse.unquote(path.removeprefix("/models/")))
        if found is None:
            return self.send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        headers = {"ETag": found.etag, "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        headers |= found.headers
        body = found.content if found.sent is None else found.sent
        wanted = self.headers.get("Range")
        if wanted is None or self.command == "HEAD":
            return self.send(200, body, headers)
        first, last = wanted.removeprefix("bytes=").split("-")
        part = body[int(first) : int(last) + 1]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
        return self.send(206, part, headers | {"Content-Range": span})

    def listing(self, asked: dict[str, list[str]]) -> bytes:
        """Two keys a page."""
        prefix, after = asked["prefix"][0], asked.get("continuation-token", [""])[0]
        keys = sorted(key for key in self.server.objects if key.startswith(prefix) and key > after)
        page, more = keys[:2], len(keys) > 2
        items = "".join(
            f"<Contents><Key>{escape(urllib.parse.quote_plus(key))}</Key>"
            f"<Size>{len(self.server.objects[key].content)}</Size>"
            f"<ETag>{escape(self.server.objects[key].etag)}</ETag>"
            f"<StorageClass>{self.server.objects[key].headers.get('x-amz-storage-class', '')}"
            "</StorageClass></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{items}{token}</ListBucketResult>"
        ).encode()

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Bucket(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, Object] = {}
        self.refusals: list[tuple[int, str]] = []
        self.seen: list[str] = []

    def access(self, **members: object) -> StoreAccess:
        endpoint = f"http://127.0.0.1:{self.server_port}"
        return StoreAccess(**{"endpoint": endpoint, "region": "eu-west-1", **members})  # type: ignore[arg-type]

    async def fetch(self, key: str, into: Path, **members: object) -> None:
        access = members.pop("access", None) or self.access()
        await fetch_artifact(
            ModelArtifact(f"s3://models/{key}", access=access, **members),  # type: ignore[arg-type]
            into / "m",
        )


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with Bucket() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def packed(name: str) -> Object:
    return Object(gzip.compress(file(name.encode(), b"w" * 3000) + END))


ODD = [
    "/prod/model.tar.gz",
    "prod//model.tar.gz",
    "a/../b/model.tar.gz",
    "./model.tar.gz",
    "tab\there/model.tar.gz",
    "prod/model.tar.gz/",
    "prod/.",
    "a b+c%2F?#&=/ü/model.tar.gz",
    "nul\0/model.tar.gz",
]


@pytest.mark.parametrize("key", ODD)
async def test_keys_are_opaque(bucket: Bucket, tmp_path: Path, key: str) -> None:
    others = ["prod/model.tar.gz", "b/model.tar.gz", "model.tar.gz", "prod"]
    bucket.objects = {other: packed("OTHER.pt") for other in others} | {key: packed("right.pt")}
    await bucket.fetch(key, tmp_path, compression="gzip")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["right.pt"]


@pytest.mark.parametrize(
    "key", ["//prod/model.tar.gz", "prod/model.tar.gz/", "x/../prod/model.tar.gz"]
)
async def test_a_key_that_is_not_there_is_not_found(
    bucket: Bucket, tmp_path: Path, key: str
) -> None:
    bucket.objects = {"prod/model.tar.gz": packed("OTHER.pt")}
    with pytest.raises(NotFound):
        await bucket.fetch(key, tmp_path, compression="gzip")


async def test_odd_keys_under_a_prefix_are_refused_at_once(bucket: Bucket, tmp_path: Path) -> None:
    bucket.objects = {"m/ok": Object(b"1"), "m/a//b": Object(b"2")}
    with pytest.raises(ArtifactError, match="no file name"):
        await bucket.fetch("m/", tmp_path, kind="prefix")


async def test_a_prefix_of_several_pages_is_fetched(bucket: Bucket, tmp_path: Path) -> None:
    names = ["a", "b+c d", "e/f", "g%20h", "ü"]
    bucket.objects = {f"m/{name}": Object(name.encode()) for name in names}
    bucket.objects["m2/other"] = Object(b"other")
    await bucket.fetch("m/", tmp_path, kind="prefix")
    for name in names:
        assert (tmp_path / "m" / name).read_bytes() == name.encode()


CONTENT = bytes(range(256)) * 40_000  # two parts
FLIPPED = CONTENT[:-1] + b"\0"


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


KNOWN = {
    "md5": {},
    "sha256": {"x-amz-checksum-sha256": b64(hashlib.sha256(CONTENT).digest())},
    "sha1": {"x-amz-checksum-sha1": b64(hashlib.sha1(CONTENT).digest())},
    "crc32c": {"x-amz-checksum-crc32c": b64(google_crc32c.extend(0, CONTENT).to_bytes(4, "big"))},
    "crc32": {"x-amz-checksum-crc32": b64(zlib.crc32(CONTENT).to_bytes(4, "big"))},
}


@pytest.mark.parametrize("algorithm", KNOWN)
async def test_what_the_store_knows_is_compared(
    bucket: Bucket, tmp_path: Path, algorithm: str
) -> None:
    headers = {} if algorithm == "md5" else {**KNOWN[algorithm], "ETag": '"' + "0" * 32 + '-2"'}
    bucket.objects = {"w": Object(CONTENT, headers), "bad": Object(CONTENT, headers, sent=FLIPPED)}
    await bucket.fetch("w", tmp_path)
    (tmp_path / "m/w").unlink()
    (tmp_path / "m").rmdir()
    with pytest.raises(IntegrityError, match=f"bad arrived with the {algorithm} "):
        await bucket.fetch("bad", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"' + "0" * 32 + '-2"'},
        {"x-amz-server-side-encryption": "aws:kms", "ETag": '"' + "0" * 32 + '"'},
        {
            "ETag": '"' + "0" * 32 + '-2"',
            "x-amz-checksum-crc32": "AAAAAA==",
            "x-amz-checksum-type": "COMPOSITE",
        },
        {"ETag": '"' + "0" * 32 + '-2"', "x-amz-checksum-sha256": f"{b64(bytes(32))}-2"},
    ],
)
async def test_what_says_nothing_of_the_whole_is_not_compared(
    bucket: Bucket, tmp_path: Path, headers: dict[str, str]
) -> None:
    bucket.objects = {"w": Object(CONTENT, headers)}
    await bucket.fetch("w", tmp_path)
    assert (tmp_path / "m/w").read_bytes() == CONTENT


async def test_a_store_whose_etags_are_no_md5_can_be_configured(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.objects = {"w": Object(CONTENT, {"ETag": '"' + "0" * 32 + '"'})}
    with pytest.raises(IntegrityError):
        await bucket.fetch("w", tmp_path)
    await bucket.fetch("w", tmp_path, access=bucket.access(etag_is_md5=False))


@pytest.mark.parametrize(
    ("headers", "is_read"),
    [
        ({"x-amz-storage-class": "GLACIER"}, False),
        ({"x-amz-storage-class": "DEEP_ARCHIVE", "x-amz-restore": 'ongoing-request="true"'}, False),
        ({"x-amz-storage-class": "GLACIER", "x-amz-restore": 'ongoing-request="false"'}, True),
        ({"x-amz-storage-class": "GLACIER_IR"}, True),
        (
            {
                "x-amz-storage-class": "INTELLIGENT_TIERING",
                "x-amz-archive-status": "ARCHIVE_ACCESS",
            },
            False,
        ),
    ],
)
async def test_archived_objects_are_named(
    bucket: Bucket, tmp_path: Path, headers: dict[str, str], is_read: bool
) -> None:
    bucket.objects = {"m/w": Object(b"w", headers)}
    for key, kind in (("m/w", "object"), ("m/", "prefix")):
        if is_read:
            await bucket.fetch(key, tmp_path / kind, kind=kind)
        else:
            with pytest.raises(ArtifactError, match=r"m/w is archived .*: restore it"):
                await bucket.fetch(key, tmp_path / kind, kind=kind)


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (403, "AccessDenied", AccessDenied, "check the credentials configured"),
        (403, "SignatureDoesNotMatch", AccessDenied, "secret_access_key is wrong"),
        (400, "ExpiredToken", AccessDenied, "session token of the bucket has expired"),
        (403, "RequestTimeTooSkewed", AccessDenied, "clock is wrong"),
        (403, "InvalidObjectState", ArtifactError, "is archived"),
        (404, "NoSuchBucket", NotFound, "check the bucket"),
        (418, "", Unavailable, "answers 418"),
    ],
)
async def test_refusals_are_told_by_their_code(
    bucket: Bucket, tmp_path: Path, status: int, code: str, kind: type[ZeropullError], message: str
) -> None:
    bucket.refusals = [(status, code)] * 2
    with pytest.raises(kind, match=message):
        await bucket.fetch("w", tmp_path)


async def test_a_busy_store_is_asked_again(bucket: Bucket, tmp_path: Path) -> None:
    bucket.objects = {"w": Object(b"w")}
    bucket.refusals = [(503, "SlowDown"), (500, "InternalError")]
    await bucket.fetch("w", tmp_path)


@pytest.mark.parametrize(
    "members",
    [
        {"endpoint": "127.0.0.1:9000"},
        {"endpoint": "http://"},
        {"endpoint": "ftp://127.0.0.1"},
        {"access_key_id": "key\n", "secret_access_key": "s"},
        {"access_key_id": "key", "secret_access_key": "s", "session_token": "t\n"},
    ],
)
async def test_settings_that_no_store_can_be_asked_with_are_named(
    bucket: Bucket, tmp_path: Path, members: dict[str, str]
) -> None:
    with pytest.raises(ConfigurationError, match=r"buckets\.models\.(endpoint|access_key|session)"):
        await bucket.fetch("w", tmp_path, access=bucket.access(**members))
