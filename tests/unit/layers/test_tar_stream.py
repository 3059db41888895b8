"""A layer's blob to its tar bytes, inflated ahead in a thread."""

from __future__ import annotations

import gzip
import hashlib
import random
import threading
from collections.abc import Iterator

import pytest
import zstandard

from zeropull.errors import ImageError, IntegrityError, Unavailable, UnreadableImage
from zeropull.layers.tar_stream import TarStream

CONTENT = random.Random(3).randbytes(2_000_000) + bytes(6_000_000)
PACKED = gzip.compress(CONTENT, 1)
LIMIT = 1 << 30


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
    with TarStream(buffers(blob), threading.Event(), LIMIT) as stream:
        content = b"".join(bytes(view) for view in stream)
    assert content == CONTENT
    assert stream.diff_id == sha256(CONTENT)
    assert (stream.blob_digest, stream.blob_bytes) == (sha256(blob), len(blob))


def test_a_first_buffer_of_two_bytes_is_no_mystery() -> None:
    parts = iter([PACKED[:2], PACKED[2:3], PACKED[3:]])
    with TarStream(parts, threading.Event(), LIMIT) as stream:
        assert b"".join(bytes(view) for view in stream) == CONTENT
    assert stream.blob_digest == sha256(PACKED)


def test_damage_leaves_the_rest_of_the_blob_to_be_hashed() -> None:
    blob = bytearray(PACKED)
    blob[len(blob) // 2] ^= 1
    stream = TarStream(buffers(bytes(blob)), threading.Event(), LIMIT)
    with pytest.raises(IntegrityError, match="compressed stream is damaged"), stream:
        list(stream)
    assert stream.drain_blob() == sha256(bytes(blob))


def test_the_registrys_error_is_the_one_that_is_told() -> None:
    def broken() -> Iterator[memoryview]:
        yield from buffers(PACKED[:900_000])
        raise Unavailable("the registry has gone")

    stream = TarStream(broken(), threading.Event(), LIMIT)
    with pytest.raises(Unavailable, match="the registry has gone"), stream:
        list(stream)


def test_who_stops_in_the_middle_waits_for_nothing() -> None:
    blob = gzip.compress(random.Random(5).randbytes(40_000_000), 0)
    with TarStream(buffers(blob), threading.Event(), LIMIT) as stream:
        next(iter(stream))
    assert stream.blob_bytes < len(blob)


def test_a_longer_tar_than_the_limit_is_refused() -> None:
    blob = gzip.compress(bytes(30_000_000))
    with (
        pytest.raises(ImageError, match="inflates to more than 10,000,000 bytes"),
        TarStream(buffers(blob), threading.Event(), 10_000_000) as stream,
    ):
        list(stream)


def zstd_frame(content: bytes, window_log: int) -> bytes:
    """One raw block in a frame that asks for a window of this size (RFC 8878, section 3.1.1)."""
    header = (0xFD2FB528).to_bytes(4, "little") + bytes([0, (window_log - 10) << 3])
    return header + (1 | len(content) << 3).to_bytes(3, "little") + content


def test_a_zstd_window_of_256_mib_is_read() -> None:
    blob = zstd_frame(b"tar" * 100, 28)
    with TarStream(buffers(blob), threading.Event(), LIMIT) as stream:
        assert b"".join(bytes(view) for view in stream) == b"tar" * 100


def test_a_larger_window_is_no_damage() -> None:
    blob = zstd_frame(b"tar" * 100, 29)
    stream = TarStream(buffers(blob), threading.Event(), LIMIT)
    with pytest.raises(UnreadableImage, match="too much memory"), stream:
        list(stream)
    assert stream.drain_blob() == sha256(blob)


def test_a_stop_ends_it() -> None:
    stop = threading.Event()
    blob = gzip.compress(random.Random(6).randbytes(40_000_000), 0)
    stream = TarStream(buffers(blob), stop, LIMIT)
    with pytest.raises(Unavailable, match="stopped"), stream:
        for _ in stream:
            stop.set()
