"""The data file: padding, block digests, and errors of the disk that surface late."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from zeropull.errors import DiskFull, Unavailable
from zeropull.layers.data_file import DataFile, append_copies

BLOCK = 256 << 10


def digests_of(content: bytes) -> bytes:
    return b"".join(
        blake3(content[start : start + BLOCK]).digest() for start in range(0, len(content), BLOCK)
    )


def test_files_begin_on_pages_and_the_end_is_padded(tmp_path: Path) -> None:
    data = DataFile(tmp_path / "data", threading.Event())
    parts = [os.urandom(size) for size in (1, 4096, 5_000_000, 4097)]
    blocks = []
    for part in parts:
        blocks.append(data.begin())
        data.write(memoryview(part))
    digests = data.finish()
    data.close()
    content = (tmp_path / "data").read_bytes()
    assert len(content) == data.size and len(content) % 4096 == 0
    for block, part in zip(blocks, parts, strict=True):
        assert content[block * 4096 :][: len(part)] == part
    assert digests == digests_of(content)


def test_copies_are_appended_and_the_last_digests_renewed(tmp_path: Path) -> None:
    data = DataFile(tmp_path / "data", threading.Event())
    data.write(memoryview(os.urandom(BLOCK + 4096)))
    digests = data.finish()
    data.close()
    lower = tmp_path / "lower"
    lower.write_bytes(os.urandom(2 << 20))
    renewed = append_copies(
        tmp_path / "data", digests, [(lower, 4096, BLOCK + 4096, (1 << 20) + 4096)]
    )
    content = (tmp_path / "data").read_bytes()
    assert content[BLOCK + 4096 :] == lower.read_bytes()[4096 : (1 << 20) + 8192]
    assert renewed == digests_of(content)


def test_a_disk_that_is_full_at_the_very_end_is_told(tmp_path: Path) -> None:
    def refuse(descriptor: int, view: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    data = DataFile(tmp_path / "data", threading.Event(), pwrite=refuse)
    data.write(memoryview(b"x" * 100))
    with pytest.raises(DiskFull, match="bytes are free"):
        data.finish()
    data.close()


def test_a_stopped_conversion_ends_at_the_next_buffer(tmp_path: Path) -> None:
    stop = threading.Event()
    data = DataFile(tmp_path / "data", stop)
    stop.set()
    with pytest.raises(Unavailable, match="stopped"):
        data.write(memoryview(bytes(8 << 20)))
    data.close()


def test_the_last_of_the_disk_is_left_to_others(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    more_than_there_is = disk.f_blocks * disk.f_frsize * 2
    data = DataFile(tmp_path / "data", threading.Event(), reserve_bytes=more_than_there_is)
    try:
        data.write(memoryview(bytes(5000)))
        with pytest.raises(DiskFull, match="no room for more image data"):
            data.finish()
    finally:
        data.close()
    assert (tmp_path / "data").stat().st_size == 0
