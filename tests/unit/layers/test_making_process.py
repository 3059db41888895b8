"""Layers made in processes of their own: the same files as from threads, the same errors, and
nobody left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.layers import image_of, member, open_bytes, tar_of
from tests.fixtures.plugin import wait_until
from tests.fixtures.processes import layer_processes_of
from zeropull.erofs.tar_layer import LayerLimits
from zeropull.errors import ImageError, Unavailable
from zeropull.layers.layout import LAYER_FILES, layer_directory
from zeropull.layers.making import LayerJob
from zeropull.layers.making_process import LayerProcess
from zeropull.layers.pull import pull_layers
from zeropull.oci.images import ResolvedImage

DIRECTORY = member("usr", tarfile.DIRTYPE, mode=0o751, uid=7)
BIG = member("usr/big", data=os.urandom(3_000_000))
LAYERS = [
    tar_of(DIRECTORY, BIG, *(member(f"usr/f{i}", data=b"%d" % i) for i in range(500))),
    tar_of(member("usr/new", data=b"implies usr")),
    tar_of(member("link", tarfile.LNKTYPE, linkname="usr/big")),  # to a file of the lowest layer
    tar_of(*(member(f"other/f{i}", data=os.urandom(4000)) for i in range(300))),
]


async def pull(image: ResolvedImage, blobs: list[Any], store: Path, **options: Any) -> None:
    options.setdefault("open_blob", open_bytes)
    options.setdefault("in_processes", True)
    missing = list(range(len(blobs)))
    await pull_layers(image, missing, blobs, store, lambda _: None, **options)


async def test_processes_and_threads_make_the_same_files(tmp_path: Path) -> None:
    image, blobs = image_of(LAYERS)
    await pull(image, blobs, tmp_path / "processes")
    await pull(image, blobs, tmp_path / "threads", in_processes=False)
    assert len(list((tmp_path / "processes").iterdir())) == len(LAYERS)
    for chain_id in image.chain_ids:
        ours, theirs = (
            layer_directory(tmp_path / way, chain_id) for way in ("processes", "threads")
        )
        for name in LAYER_FILES:
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


async def test_a_layer_that_can_never_be_used_says_why(tmp_path: Path) -> None:
    image, blobs = image_of(LAYERS)
    with pytest.raises(ImageError, match="more than 100 entries"):
        await pull(image, blobs, tmp_path, limits=LayerLimits(entries=100))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def job_for(image: ResolvedImage, directory: Path) -> LayerJob:
    directory.mkdir()
    layer = image.layers[0]
    return LayerJob(
        directory=str(directory),
        chain_id=image.chain_ids[0],
        parent_chain_id="",
        diff_id=image.diff_ids[0],
        blob_digest=layer.digest,
        limits=LayerLimits(),
    )


def test_one_that_is_killed_is_worth_another_attempt(tmp_path: Path) -> None:
    image, blobs = image_of(LAYERS[:1])
    before = set(layer_processes_of(os.getpid()))
    process = LayerProcess()
    (number,) = set(layer_processes_of(os.getpid())) - before

    def blob() -> Iterator[memoryview]:
        yield memoryview(blobs[0])[:1_000_000]
        os.kill(number, signal.SIGKILL)
        yield memoryview(blobs[0])[1_000_000:]

    try:
        with pytest.raises(Unavailable, match="process for making layers ended with status -9"):
            process.make(job_for(image, tmp_path / "layer"), blob())
    finally:
        process.close()
    assert number not in layer_processes_of(os.getpid())


def test_whoever_waits_for_one_that_is_ended_is_told(tmp_path: Path) -> None:
    image, blobs = image_of(LAYERS[:1])
    process = LayerProcess()

    def blob() -> Iterator[memoryview]:
        yield memoryview(blobs[0])
        process.kill()

    try:
        with pytest.raises(Unavailable, match="making layers was stopped"):
            process.make(job_for(image, tmp_path / "layer"), blob())
    finally:
        process.close()


def test_the_reason_arrives_although_parts_were_left_unread(tmp_path: Path) -> None:
    """A full disk is told while the rest of the blob is still on its way."""
    image, blobs = image_of([tar_of(member("big", data=os.urandom(8 << 20)))])
    job = job_for(image, tmp_path / "layer")
    process = LayerProcess()
    (number,) = layer_processes_of(os.getpid())
    (tmp_path / "layer/data.erofs").mkdir()  # where a file should be: an error at once

    def blob() -> Iterator[memoryview]:
        yield memoryview(blobs[0])[: 4 << 20]
        state = Path(f"/proc/{number}/stat")
        wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "Z", lambda: None)
        yield memoryview(blobs[0])[4 << 20 :]

    try:
        with pytest.raises(FileExistsError, match=r"data\.erofs"):
            process.make(job, blob())
    finally:
        process.close()


async def test_a_cancelled_pull_leaves_no_process(tmp_path: Path) -> None:
    image, blobs = image_of(LAYERS)
    before = set(layer_processes_of(os.getpid()))
    task = asyncio.create_task(pull(image, blobs, tmp_path))
    await asyncio.to_thread(
        wait_until, lambda: bool(set(layer_processes_of(os.getpid())) - before), lambda: None
    )
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(layer_processes_of(os.getpid())) <= before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_it_ends_with_its_parent() -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import sys, time
                from zeropull.layers.making_process import LayerProcess
                process = LayerProcess()
                print("started", flush=True)
                time.sleep(60)
                """
            ),
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"started\n"
    (number,) = layer_processes_of(parent.pid)
    parent.kill()
    parent.communicate()
    wait_until(lambda: not Path(f"/proc/{number}").exists(), lambda: None)
