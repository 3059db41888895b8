"""Wrong, truncated, absurd and unstorable layers, and cancellation: a clear error, nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.fixtures.layers import digest, image_of, member, open_bytes, tar_of
from tests.fixtures.plugin import wait_until
from tests.fixtures.processes import layer_processes_of
from zeropull.erofs.tar_layer import LayerLimits
from zeropull.errors import DiskFull, ImageError, IntegrityError, Unavailable
from zeropull.layers.layout import layer_directory
from zeropull.layers.mount import unmount
from zeropull.layers.pull import PullProgress, PullResult, clean_layer_store, pull_layers
from zeropull.layers.verify import verify_blocks, verify_metadata
from zeropull.oci.images import Descriptor, ResolvedImage

FILES = tar_of(*(member(f"d/f{i}", data=os.urandom(20_000)) for i in range(40)))


OPTIONS: dict[str, Any] = {"open_blob": open_bytes}


@pytest.fixture(params=[False, True], ids=["threads", "processes"], autouse=True)
def made_in(request: pytest.FixtureRequest) -> None:
    """Every test makes its layers in threads, then in processes."""
    OPTIONS["in_processes"] = request.param


async def pull(image: ResolvedImage, sources: list[Any], store: Path, **options: Any) -> PullResult:
    options = OPTIONS | options
    missing = list(range(len(sources)))
    return await pull_layers(image, missing, sources, store, lambda _: None, **options)


def left_in(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir())


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        lambda tar: gzip.compress(tar[:1000]) + gzip.compress(tar[1000:]),
        zstandard.ZstdCompressor().compress,
        bytes,
    ],
    ids=["gzip", "gzip-members", "zstd", "uncompressed"],
)
async def test_every_compression_gives_the_same_layer(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    image, blobs = image_of([FILES, tar_of()], compress)
    seen: list[PullProgress] = []
    result = await pull(image, blobs, tmp_path, progress=seen.append)
    assert result.registry_bytes == sum(map(len, blobs))
    assert seen[-1].layers_done == 2
    layer = layer_directory(tmp_path, image.chain_ids[0])
    assert verify_metadata(layer).diff_id == digest(FILES)
    assert verify_blocks(layer) == verify_metadata(layer).data.blocks
    assert left_in(tmp_path) == sorted(chain[7:] for chain in image.chain_ids)


async def test_converting_twice_gives_equal_bytes(tmp_path: Path) -> None:
    image, blobs = image_of([FILES])
    await pull(image, blobs, tmp_path / "a")
    await pull(image, blobs, tmp_path / "b")
    for name in ("meta.erofs", "data.erofs", "blocks.blake3", "layer.json"):
        first, second = (
            layer_directory(tmp_path / store, image.chain_ids[0]) / name for store in ("a", "b")
        )
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("where", ["gone", None])
async def test_a_layer_below_that_goes_away_meanwhile_is_worth_another_attempt(
    tmp_path: Path, where: str | None
) -> None:
    image, blobs = image_of([FILES, FILES])
    gone = tmp_path / where if where else None
    with pytest.raises(IntegrityError, match="went away"):
        await pull_layers(image, [1], blobs[1:], tmp_path / "store", lambda _: gone, **OPTIONS)
    assert left_in(tmp_path / "store") == []


def with_layer(image: ResolvedImage, **changes: Any) -> ResolvedImage:
    return replace(image, layers=(replace(image.layers[0], **changes),))


async def test_a_blob_with_another_digest_is_refused(tmp_path: Path) -> None:
    image, blobs = image_of([FILES])
    for blob in (
        blobs[0][:-100],
        blobs[0][:5000] + b"\xff" * 50 + blobs[0][5050:],
        b"",
        b"tar?" * 400,
    ):
        with pytest.raises(IntegrityError, match=f"layer {image.layers[0].digest}: the registry"):
            await pull(image, [blob], tmp_path)
        assert left_in(tmp_path) == []


async def test_a_layer_with_another_diff_id_is_refused(tmp_path: Path) -> None:
    image, blobs = image_of([FILES])
    with pytest.raises(IntegrityError, match="the image config says"):
        await pull(replace(image, diff_ids=(digest(b"other"),)), blobs, tmp_path)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
async def test_a_decompression_bomb_is_refused_early(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    image, blobs = image_of([tar_of(member("zeros", data=bytes(64 << 20)))], compress)
    assert len(blobs[0]) < 100_000
    with pytest.raises(ImageError, match=r"inflates to more than 33,554,432 bytes|limit of 335"):
        await pull(image, blobs, tmp_path, limits=LayerLimits(data_bytes=32 << 20))
    assert left_in(tmp_path) == []


async def test_garbage_that_matches_its_digest_is_an_image_error(tmp_path: Path) -> None:
    garbage = b"this is no tar stream" * 100
    layer = Descriptor("x", digest(garbage), len(garbage))
    image, _ = image_of([FILES])
    image = replace(image, layers=(layer,), diff_ids=(digest(garbage),))
    with pytest.raises(ImageError, match=r"not a tar stream|whose checksum is"):
        await pull(image, [garbage], tmp_path)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    disk, mounted = tmp_path / "disk", tmp_path / "m"
    disk.touch()
    os.truncate(disk, 8 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(disk)], check=True)
    mounted.mkdir()
    subprocess.run(["mount", "-o", "loop", str(disk), str(mounted)], check=True)
    try:
        store = mounted / "layers"
        image, blobs = image_of([FILES, tar_of(member("z", data=bytes(12 << 20)))])
        with pytest.raises(DiskFull, match="bytes are free"):
            asyncio.run(pull(image, blobs, store))
        assert [name for name in left_in(store) if name.startswith(".")] == []
        big, big_blobs = image_of([tar_of(member("r", data=os.urandom(12 << 20)))])
        with pytest.raises(DiskFull, match="compressed bytes"):
            asyncio.run(pull(big, big_blobs, store))
    finally:
        unmount(mounted)


async def test_cancellation_stops_the_threads_and_leaves_nothing(tmp_path: Path) -> None:
    image, blobs = image_of([FILES])
    reading = threading.Event()

    @contextlib.contextmanager
    def stalled(
        source: Any, stop: threading.Event, on_bytes: Callable[[int], None]
    ) -> Iterator[Iterator[memoryview]]:
        def parts() -> Iterator[memoryview]:
            yield memoryview(source)[:50_000]
            reading.set()
            stop.wait(30)
            raise Unavailable("stopped")

        yield parts()

    task = asyncio.create_task(pull(image, blobs, tmp_path, open_blob=stalled))
    await asyncio.to_thread(reading.wait, 30)
    assert len(left_in(tmp_path)) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left_in(tmp_path) == []


async def test_a_cancellation_while_a_failed_pull_ends_leaves_nothing(tmp_path: Path) -> None:
    image, blobs = image_of([FILES, tar_of(member("f", data=os.urandom(100_000)))])
    stops: list[threading.Event] = []
    is_reading, let_go = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def reading(
        source: Any, stop: threading.Event, on_bytes: Callable[[int], None]
    ) -> Iterator[Iterator[memoryview]]:
        def parts() -> Iterator[memoryview]:
            yield memoryview(source)[:50_000]
            if source is blobs[0]:
                is_reading.wait(30)
                stops.append(stop)
                raise Unavailable("the registry has gone")
            is_reading.set()
            let_go.wait(30)
            raise Unavailable("stopped")

        yield parts()

    task = asyncio.create_task(pull(image, blobs, tmp_path, open_blob=reading))
    await asyncio.to_thread(wait_until, lambda: bool(stops) and stops[0].is_set(), lambda: None)
    task.cancel()
    await asyncio.to_thread(let_go.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left_in(tmp_path) == []
    assert layer_processes_of(os.getpid()) == []


async def test_one_bad_layer_keeps_the_finished_ones_below(tmp_path: Path) -> None:
    image, blobs = image_of([FILES, tar_of(member("f"))])
    await pull_layers(image, [0], blobs[:1], tmp_path, lambda _: None, **OPTIONS)
    published = layer_directory(tmp_path, image.chain_ids[0])
    with pytest.raises(IntegrityError):
        bad: list[Any] = [b"bad"]
        await pull_layers(image, [1], bad, tmp_path, lambda _: published, **OPTIONS)
    assert left_in(tmp_path) == [published.name]
    await pull_layers(image, [1], blobs[1:], tmp_path, lambda _: published, **OPTIONS)
    assert len(left_in(tmp_path)) == 2


def test_the_layer_store_is_cleaned_of_what_a_crash_left(tmp_path: Path) -> None:
    left = tmp_path / ".tmp-0123-ab"
    left.mkdir()
    (left / "data.erofs").write_bytes(b"x")
    kept = tmp_path / ("a" * 64)
    kept.mkdir()
    assert clean_layer_store(tmp_path) == [left]
    assert left_in(tmp_path) == [kept.name]


async def test_120_layers_are_converted_and_published(tmp_path: Path) -> None:
    image, blobs = image_of([tar_of(member(f"d/f{i}", data=b"%d" % i)) for i in range(120)])
    await pull(image, blobs, tmp_path)
    assert len(left_in(tmp_path)) == 120
    shutil.rmtree(tmp_path)
