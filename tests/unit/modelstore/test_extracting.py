from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.images import Entry, directory, layer_tar, symlink
from zeropull.errors import ArtifactError, DiskFull
from zeropull.inflating.in_thread import InflatingInThread
from zeropull.inflating.readers import GZIP_HEAD
from zeropull.modelstore.extracting import extract_tar_gz


def inflated(packed: bytes) -> Iterator[memoryview]:
    inflating = InflatingInThread(GZIP_HEAD)
    inflating.put(packed)
    inflating.end()
    return inflating.parts()


def extract(into: Path, *entries: Entry, cut: int = 0) -> tuple[int, int]:
    packed = gzip.compress(layer_tar(entries))
    return extract_tar_gz("m.tar.gz", inflated(packed[: len(packed) - cut]), into)


def test_files_directories_and_harmless_links_are_extracted(tmp_path: Path) -> None:
    counted = extract(
        tmp_path,
        directory("./"),
        Entry("./weights/a.bin", b"abc", mode=0o4777),
        Entry("run.sh", b"#!/bin/sh\n", mode=0o755),
        symlink("weights/latest", "a.bin"),
        symlink("weights/up", "../run.sh"),
        Entry("hard", kind="hardlink", link="./weights/a.bin"),
    )
    assert counted == (2, 13)
    assert (tmp_path / "weights/latest").read_bytes() == b"abc"
    assert (tmp_path / "weights/up").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "hard").samefile(tmp_path / "weights/a.bin")
    assert (tmp_path / "weights/a.bin").stat().st_mode & 0o7777 == 0o755


def test_a_later_member_replaces_an_earlier_one(tmp_path: Path) -> None:
    extract(tmp_path, Entry("a", b"1"), Entry("a", b"2"))
    assert (tmp_path / "a").read_bytes() == b"2"


@pytest.mark.parametrize(
    "entries",
    [
        [Entry("/etc/passwd", b"x")],
        [Entry("../x", b"x")],
        [Entry("a/../../x", b"x")],
        [symlink("a", "/etc")],
        [symlink("a", "../outside")],
        [symlink("d/a", "../../outside")],
        [symlink("d/here", "."), symlink("d/a", "here/../..")],
        [symlink("a", "b"), directory("b"), Entry("a/x", b"x")],
        [Entry("a", kind="hardlink", link="/etc/passwd")],
        [Entry("a", kind="hardlink", link="../x")],
        [symlink("s", "f"), Entry("f", b"x"), Entry("a", kind="hardlink", link="s")],
        [Entry("a", kind="char", device=(1, 3))],
        [Entry("a", kind="block", device=(8, 0))],
        [Entry("a", kind="fifo")],
        [directory("a"), Entry("a", b"x")],
        [Entry("a", b"x"), Entry("a/b", b"x")],
        [Entry("x" * 256, b"x")],
        [Entry(" ", b"x")],
    ],
)
def test_what_could_escape_or_surprise_is_refused(tmp_path: Path, entries: list[Entry]) -> None:
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ArtifactError):
        extract(into, *entries)
    assert list(tmp_path.iterdir()) == [into]


@pytest.mark.parametrize("cut", [1, 8, 300, 900])
def test_a_truncated_archive_is_refused(tmp_path: Path, cut: int) -> None:
    with pytest.raises(ArtifactError, match="truncated"):
        extract(tmp_path, Entry("a", os.urandom(1000)), cut=cut)


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip at all", gzip.compress(b"not a tar" * 100)],
    ids=["nothing", "not gzip", "not a tar"],
)
def test_what_is_not_a_tar_gz_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ArtifactError):
        extract_tar_gz("m.tar.gz", inflated(content), tmp_path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(layer_tar([Entry("a", os.urandom(5000))])))
    packed[2500] ^= 1
    with pytest.raises(ArtifactError):
        extract_tar_gz("m.tar.gz", inflated(bytes(packed)), tmp_path)


def pax_record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n"
    length = len(text) + len(str(len(text)))
    return f"{length + (len(str(length)) > len(str(len(text))))}{text}".encode()


def member(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, len(content) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_too_large_for_memory_is_refused_before_it_is_read(
    tmp_path: Path, kind: bytes
) -> None:
    packed = gzip.compress(member(kind, b"", size=100 << 30))
    with pytest.raises(ArtifactError, match="107,374,182,400 bytes"):
        extract_tar_gz("m.tar.gz", inflated(packed), tmp_path)


@pytest.mark.parametrize("version", ["old", "0.1", "1.0"])
def test_sparse_files_are_refused(tmp_path: Path, version: str) -> None:
    if version == "old":
        content = member(tarfile.GNUTYPE_SPARSE, b"")
    else:
        records = pax_record("GNU.sparse.map", "0,0") + pax_record("GNU.sparse.size", str(1 << 50))
        if version == "1.0":
            records = pax_record("GNU.sparse.major", "1") + pax_record("GNU.sparse.minor", "0")
        content = member(tarfile.XHDTYPE, records) + member(tarfile.REGTYPE, b"0\n" + bytes(510))
    with pytest.raises(ArtifactError, match="sparse"):
        extract_tar_gz("m.tar.gz", inflated(gzip.compress(content + bytes(1024))), tmp_path)


def test_an_archive_that_unpacks_to_more_than_fits_ends_early(tmp_path: Path) -> None:
    def check_room() -> None:
        raise DiskFull("no more room")

    packed = gzip.compress(layer_tar([Entry("a", bytes(100 << 20))]), 1)
    with pytest.raises(DiskFull, match="no more room"):
        extract_tar_gz("m.tar.gz", inflated(packed), tmp_path, check_room=check_room)
    assert (tmp_path / "a").stat().st_size < 80 << 20
