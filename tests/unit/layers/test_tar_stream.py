"""A layer's blob to its tar bytes, inflated in a thread and in a process of its own."""

from __future__ import annotations

import gzip
import hashlib
import random
import threading
from collections.abc import Iterator

import pytest
import zstandard

from zeropull.errors import ImageError, IntegrityError, Unavailable
from zeropull.layers import tar_stream
from zeropull.layers.tar_stream import TarStream

CONTENT = random.Random(3).randbytes(2_000_000) + bytes(6_000_000)
PACKED = gzip.compress(CONTENT, 1)


@pytest.fixture(params=["thread", "process"], autouse=True)
def inflated_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    worth_it = 0 if request.param == "process" else 1 << 40
    monkeypatch.setattr(tar_stream, "WORTH_IT_BYTES", worth_it)


def buffers(blob: bytes, size: int = 300_000) -> Iterator[memoryview]:
    """One buffer for all, as the registry's are: whoever keeps one reads something else."""
    buffer = bytearray(size)
    for start in range(0, len(blob), size):
        part = blob[start : start + size]
        buffer[: len(part)] = part
        yield memoryview(buffer)[: len(part)]


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "blob",
    [PACKED, zstandard.compress(CONTENT), CONTENT, PACKED + bytes(700_000)],
    ids=["gzip", "zstd", "tar", "trailing-zeros"],
)
def test_content_and_both_digests(blob: bytes) -> None:
    with TarStream(buffers(blob), len(blob), threading.Event()) as stream:
        content = b"".join(bytes(view) for view in stream)
    assert content == CONTENT
    assert stream.diff_id == sha256(CONTENT)
    assert (stream.blob_digest, stream.blob_bytes) == (sha256(blob), len(blob))


def test_a_first_buffer_of_two_bytes_is_no_mystery() -> None:
    parts = iter([PACKED[:2], PACKED[2:3], PACKED[3:]])
    with TarStream(parts, len(PACKED), threading.Event()) as stream:
        assert b"".join(bytes(view) for view in stream) == CONTENT
    assert stream.blob_digest == sha256(PACKED)


def test_damage_leaves_the_rest_of_the_blob_to_be_hashed() -> None:
    blob = bytearray(PACKED)
    blob[len(blob) // 2] ^= 1
    stream = TarStream(buffers(bytes(blob)), len(blob), threading.Event())
    with pytest.raises(IntegrityError, match="compressed stream is damaged"), stream:
        list(stream)
    assert stream.drain_blob() == sha256(bytes(blob))


def test_the_registrys_error_is_the_one_that_is_told() -> None:
    def broken() -> Iterator[memoryview]:
        yield from buffers(PACKED[:900_000])
        raise Unavailable("the registry has gone")

    stream = TarStream(broken(), len(PACKED), threading.Event())
    with pytest.raises(Unavailable, match="the registry has gone"), stream:
        list(stream)


def test_who_stops_in_the_middle_waits_for_nothing() -> None:
    blob = gzip.compress(random.Random(5).randbytes(40_000_000), 0)
    with TarStream(buffers(blob), len(blob), threading.Event()) as stream:
        next(iter(stream))
    assert stream.blob_bytes < len(blob)


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "BOMB_FREE_BYTES", 1 << 20)
    blob = gzip.compress(bytes(30_000_000))
    with (
        pytest.raises(ImageError, match="inflates to more than"),
        TarStream(buffers(blob), len(blob), threading.Event()) as stream,
    ):
        list(stream)


def test_a_stop_ends_it() -> None:
    stop = threading.Event()
    blob = gzip.compress(random.Random(6).randbytes(40_000_000), 0)
    stream = TarStream(buffers(blob), len(blob), stop)
    with pytest.raises(Unavailable, match="stopped"), stream:
        for _ in stream:
            stop.set()
