"""Artifacts from the real S3 store, a mapped directory and an HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.fixtures.images import Entry, layer_tar
from tests.fixtures.relay import free_port
from tests.fixtures.s3 import Store, running_s3
from zeropull.errors import AccessDenied, ArtifactError, DiskFull, NotFound, Unavailable
from zeropull.linux.mounts import mount, unmount
from zeropull.modelstore import fetch_artifact, plan_artifact
from zeropull.resources.sources import ModelArtifact, StoreAccess

LARGE = hashlib.shake_256(b"weights").digest(20_000_000)
ARCHIVE = gzip.compress(layer_tar([Entry("w.bin", LARGE), Entry("d/c.json", b"{}")]), 1)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running_s3() as running:
        client = running.client()
        client.create_bucket(Bucket="models")
        objects = {
            "flat/weights.bin": LARGE,
            "flat/sub/config.json": b"{}",
            "model.tar.gz": ARCHIVE,
            "cut.tar.gz": ARCHIVE[:-1000],
            "empty": b"",
        }
        for key, content in objects.items():
            client.put_object(Bucket="models", Key=key, Body=content)
        yield running


def access(store: Store, **changes: str) -> StoreAccess:
    facts = StoreAccess(
        endpoint=store.endpoint,
        region=store.region,
        access_key_id=store.access_key_id,
        secret_access_key=store.secret_access_key,
    )
    return dataclasses.replace(facts, **changes)  # type: ignore[arg-type]  # only texts


def artifact(store: Store, key: str, **options: str) -> ModelArtifact:
    return ModelArtifact(f"s3://models/{key}", access=access(store), **options)


def contents(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }


async def test_a_prefix_becomes_a_tree(store: Store, tmp_path: Path) -> None:
    seen: list[int] = []
    result = await fetch_artifact(
        artifact(store, "flat/", kind="prefix"), tmp_path / "m", on_bytes=seen.append
    )
    assert contents(tmp_path / "m") == {"weights.bin": len(LARGE), "sub/config.json": 2}
    assert (tmp_path / "m/weights.bin").read_bytes() == LARGE
    assert (result.bytes, result.files, sum(seen)) == (len(LARGE) + 2, 2, len(LARGE) + 2)


async def test_a_single_object_keeps_its_name(store: Store, tmp_path: Path) -> None:
    await fetch_artifact(artifact(store, "empty"), tmp_path / "m")
    assert contents(tmp_path / "m") == {"empty": 0}


async def test_a_tar_gz_is_extracted(store: Store, tmp_path: Path) -> None:
    wanted = artifact(store, "model.tar.gz", compression="gzip")
    result = await fetch_artifact(wanted, tmp_path / "m")
    assert (tmp_path / "m/w.bin").read_bytes() == LARGE
    assert result.bytes == len(ARCHIVE)
    assert result.identity == (await plan_artifact(wanted)).identity


async def test_a_download_that_is_cut_off_is_resumed(store: Store, tmp_path: Path) -> None:
    store.relay.drop_after = 5_000_000
    try:
        await fetch_artifact(artifact(store, "flat/weights.bin"), tmp_path / "m", connections=2)
    finally:
        store.relay.drop_after = None
    assert (tmp_path / "m/weights.bin").read_bytes() == LARGE


async def test_a_truncated_archive_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cut.tar.gz is truncated"):
        await fetch_artifact(artifact(store, "cut.tar.gz", compression="gzip"), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


async def test_a_bad_archive_ends_the_download_early(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"not a tar\.gz"):
        await fetch_artifact(
            artifact(store, "flat/weights.bin", compression="gzip"), tmp_path / "m"
        )
    assert list(tmp_path.iterdir()) == []


async def test_missing_objects_prefixes_and_buckets_are_not_found(
    store: Store, tmp_path: Path
) -> None:
    wanted = [
        artifact(store, "absent"),
        artifact(store, "absent/", kind="prefix"),
        ModelArtifact("s3://absent/key", access=access(store)),
    ]
    for one in wanted:
        with pytest.raises(NotFound, match="absent"):
            await fetch_artifact(one, tmp_path / "m")


async def test_wrong_keys_are_access_denied(store: Store, tmp_path: Path) -> None:
    wrong = access(store, secret_access_key="guess")
    with pytest.raises(AccessDenied, match="credentials"):
        await fetch_artifact(ModelArtifact("s3://models/empty", access=wrong), tmp_path / "m")


async def test_a_store_that_is_down_is_unavailable(store: Store, tmp_path: Path) -> None:
    down = access(store, endpoint=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match="does not answer"):
        await fetch_artifact(ModelArtifact("s3://models/empty", access=down), tmp_path / "m")


async def test_another_etag_than_the_models_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="asks for abc"):
        await fetch_artifact(artifact(store, "empty", etag="abc"), tmp_path / "m")


async def test_an_object_that_changes_midway_is_noticed(store: Store, tmp_path: Path) -> None:
    client = store.client()
    client.put_object(Bucket="models", Key="changing", Body=LARGE)
    changed = threading.Event()

    def change(count: int) -> None:
        if not changed.is_set():
            changed.set()
            client.put_object(Bucket="models", Key="changing", Body=LARGE[::-1])

    with pytest.raises(ArtifactError, match="was changed while"):
        await fetch_artifact(
            artifact(store, "changing"), tmp_path / "m", on_bytes=change, connections=1
        )
    assert list(tmp_path.iterdir()) == []


async def test_identity_follows_the_content(store: Store) -> None:
    client = store.client()
    identities = []
    for content in (b"one", b"two"):
        client.put_object(Bucket="models", Key="versioned", Body=content)
        identities.append((await plan_artifact(artifact(store, "versioned"))).identity)
    assert identities[0] != identities[1]


async def test_what_changed_after_it_was_planned_is_noticed(store: Store, tmp_path: Path) -> None:
    client = store.client()
    client.put_object(Bucket="models", Key="planned", Body=b"one")
    plan = await plan_artifact(artifact(store, "planned"))
    client.put_object(Bucket="models", Key="planned", Body=b"two")
    with pytest.raises(ArtifactError, match="was changed while"):
        await fetch_artifact(artifact(store, "planned"), tmp_path / "m", plan=plan)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for 64 MiB, which is what is kept free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("none", folder, "tmpfs", options="size=64m")
    yield folder
    unmount(folder)


async def test_a_full_disk_is_told_with_the_arithmetic(store: Store, small_disk: Path) -> None:
    with pytest.raises(DiskFull, match=r"20,000,000 bytes, 67,108,864 are kept free.* 67,108,864"):
        await fetch_artifact(artifact(store, "flat/weights.bin"), small_disk / "m")
    assert list(small_disk.iterdir()) == []


async def test_a_cancelled_download_leaves_nothing(store: Store, tmp_path: Path) -> None:
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_bytes(count: int) -> None:
        loop.call_soon_threadsafe(started.set)

    download = asyncio.create_task(
        fetch_artifact(
            artifact(store, "model.tar.gz", compression="gzip"),
            tmp_path / "m",
            on_bytes=on_bytes,
        )
    )
    await started.wait()
    download.cancel()
    with pytest.raises(asyncio.CancelledError):
        await download
    assert list(tmp_path.iterdir()) == []


async def test_a_bucket_can_be_a_local_directory(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    (bucket / "m/sub").mkdir(parents=True)
    (bucket / "m/sub/a").write_bytes(LARGE)
    (bucket / "m.tar.gz").write_bytes(ARCHIVE)
    mapped = StoreAccess(directory=str(bucket))
    tree = ModelArtifact("s3://b/m/", kind="prefix", access=mapped)
    archive = ModelArtifact("s3://b/m.tar.gz", compression="gzip", access=mapped)
    await fetch_artifact(tree, tmp_path / "tree")
    await fetch_artifact(archive, tmp_path / "archive")
    assert contents(tmp_path / "tree") == {"sub/a": len(LARGE)}
    assert contents(tmp_path / "archive") == {"w.bin": len(LARGE), "d/c.json": 2}
    with pytest.raises(ArtifactError):
        await fetch_artifact(ModelArtifact("s3://b/../x", access=mapped), tmp_path / "x")
    for prefix in ("/etc/", "m//sub/", "../"):
        outside = ModelArtifact(f"s3://b/{prefix}", kind="prefix", access=mapped)
        with pytest.raises(ArtifactError, match="not a prefix below"):
            await fetch_artifact(outside, tmp_path / "x")


@contextlib.contextmanager
def http_server(has_ranges: bool, drop_first: bool = False) -> Iterator[str]:
    """A web server for one object; `drop_first` breaks the first real answer off."""
    dropped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "http://198.18.0.1/latest/meta-data")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path != "/model.tar.gz?signature=secret":
                self.send_error(404)
                return
            body, wanted = ARCHIVE, self.headers.get("Range")
            self.send_response(206 if has_ranges and wanted else 200)
            if has_ranges and wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                body = ARCHIVE[int(first) : int(last) + 1]
                span = f"bytes {first}-{int(first) + len(body) - 1}/{len(ARCHIVE)}"
                self.send_header("Content-Range", span)
            self.send_header("ETag", '"v1"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if drop_first and len(body) > 1 and not dropped.is_set():
                dropped.set()
                body = body[: len(body) // 2]
                self.close_connection = True
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("has_ranges", [True, False])
async def test_a_signed_url_is_read_with_and_without_ranges(
    tmp_path: Path, has_ranges: bool
) -> None:
    with http_server(has_ranges, drop_first=True) as url:
        wanted = ModelArtifact(f"{url}/model.tar.gz?signature=secret", compression="gzip")
        await fetch_artifact(wanted, tmp_path / "m")
    assert (tmp_path / "m/w.bin").read_bytes() == LARGE


async def test_messages_keep_the_signature_to_themselves(tmp_path: Path) -> None:
    with http_server(True) as url, pytest.raises(NotFound) as caught:
        await fetch_artifact(ModelArtifact(f"{url}/absent?signature=secret"), tmp_path / "m")
    assert "secret" not in str(caught.value)


async def test_a_redirect_to_plain_http_is_refused(tmp_path: Path) -> None:
    with http_server(True) as url, pytest.raises(AccessDenied, match="not https"):
        await fetch_artifact(ModelArtifact(f"{url}/away"), tmp_path / "m")


async def test_other_schemes_are_refused(tmp_path: Path) -> None:
    for url in (
        "file:///etc/passwd",
        "http://198.18.0.1/m",
        "ftp://host/m",
        "s3://bucket",
        "https://[::1/m",
    ):
        with pytest.raises(ArtifactError):
            await fetch_artifact(ModelArtifact(url), tmp_path / "m")
