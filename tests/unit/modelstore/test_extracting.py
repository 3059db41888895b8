from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.images import Entry, directory, layer_tar, symlink
from tests.fixtures.raw_tar import END, GNU, file, header, padded, pax
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


def test_an_archive_that_unpacks_to_more_than_fits_ends_early(tmp_path: Path) -> None:
    def check_room() -> None:
        raise DiskFull("no more room")

    packed = gzip.compress(layer_tar([Entry("a", bytes(100 << 20))]), 1)
    with pytest.raises(DiskFull, match="no more room"):
        extract_tar_gz("m.tar.gz", inflated(packed), tmp_path, check_room=check_room)
    assert (tmp_path / "a").stat().st_size < 80 << 20


def test_a_leading_slash_is_stripped(tmp_path: Path) -> None:
    extract(tmp_path, directory("/home/me/model/"), Entry("//home/me/model/m.pt", b"x"))
    assert (tmp_path / "home/me/model/m.pt").read_bytes() == b"x"


def extract_raw(into: Path, tar: bytes) -> tuple[int, int]:
    return extract_tar_gz("m.tar.gz", inflated(gzip.compress(tar)), into)


WEIGHTS = file(b"a.pt", b"w" * 3000)


def damaged(block: bytes) -> bytes:
    return block[:148] + b"000000\0 " + block[156:]


@pytest.mark.parametrize(
    "tar",
    [
        WEIGHTS + damaged(header(b"b", size=2)) + padded(b"{}") + file(b"c", b"{}") + END,
        WEIGHTS + b"\1" * 2048,
        WEIGHTS + file(b"b.pt", b"w" * 3000)[:300],
        WEIGHTS + file(b"b.pt", b"w" * 3000)[:1000],
        WEIGHTS + bytes(512) + file(b"b.pt", b"w"),
        pax((b"size", b"1e3")) + WEIGHTS + END,
        pax((b"size", b"-5")) + WEIGHTS + END,
        pax((b"linkpath", b"a\0b")) + header(b"l", b"2", link=b"x") + END,
        pax((b"path", b"a\0b")) + WEIGHTS + END,
        pax((b"path", b"b.pt")),
        pax((b"path", b"b.pt")) + END,
        header(b"g", b"g", 13) + padded(b"13 path=same\n") + WEIGHTS + END,
        WEIGHTS + header(b"part", b"M", 5) + padded(b"hello") + END,
        WEIGHTS + header(b"what", b"Z") + END,
        b"",
        bytes(300),
    ],
)
def test_a_tar_that_is_not_whole_is_refused(tmp_path: Path, tar: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"m\.tar\.gz"):
        extract_raw(tmp_path, tar)


def test_thousands_of_extended_headers_are_read_without_recursion(tmp_path: Path) -> None:
    assert extract_raw(tmp_path, pax((b"comment", b"c")) * 5000 + WEIGHTS + END) == (1, 3000)


def test_the_end_mark_and_the_last_padding_may_be_missing(tmp_path: Path) -> None:
    assert extract_raw(tmp_path, WEIGHTS) == (1, 3000)
    assert extract_raw(tmp_path, file(b"b.pt", b"w" * 700)[:-200]) == (1, 700)


def test_labels_and_access_control_lists_are_no_files(tmp_path: Path) -> None:
    label = header(b"label", b"V", magic=GNU)
    acl = header(b"acl", b"A", 5) + padded(b"hello")
    comment = header(b"g", b"g", 13) + padded(b"13 comment=x\n")
    assert extract_raw(tmp_path, label + comment + acl + WEIGHTS + END) == (1, 3000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_hard_link_to_itself_is_passed_over(tmp_path: Path) -> None:
    extract_raw(tmp_path, WEIGHTS + header(b"./a.pt", b"1", link=b"a.pt") + END)
    assert (tmp_path / "a.pt").read_bytes() == b"w" * 3000
    with pytest.raises(ArtifactError, match="no file of this archive"):
        extract_raw(tmp_path, header(b"b.pt", b"1", link=b"b.pt") + END)


def test_a_sparse_member_of_macos_has_its_holes(tmp_path: Path) -> None:
    records = pax(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"weights.bin"),
        (b"GNU.sparse.realsize", b"1073741824"),
    )
    segments = padded(b"2\n0\n4096\n1073741824\n0\n") + b"q" * 4096
    counted = extract_raw(tmp_path, records + file(b"GNUSparseFile.0/w", segments) + END)
    status = (tmp_path / "weights.bin").stat()
    assert counted == (1, 4096)
    assert (status.st_size, status.st_blocks <= 16) == (1 << 30, True)
    with (tmp_path / "weights.bin").open("rb") as weights:
        assert weights.read(4097) == b"q" * 4096 + b"\0"


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize(
    "options",
    [
        "--format=gnu",
        "--format=ustar",
        "--format=posix",
        "--format=v7",
        "--format=oldgnu --sparse",
        "--format=posix --sparse-version=0.0 --sparse",
        "--format=posix --sparse-version=0.1 --sparse",
        "--format=posix --sparse-version=1.0 --sparse",
        "--format=gnu --label=model",
        "--format=gnu --incremental",
        "--format=gnu --absolute-names",
    ],
)
def test_what_gnu_tar_packs_is_what_gnu_tar_extracts(tmp_path: Path, options: str) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/config.json").write_bytes(b"{}")
    os.link(source / "sub/config.json", source / "again.json")
    (source / "latest").symlink_to("sub/config.json")
    with (source / "holes").open("wb") as holes:
        for place in (0, 100_000, 300_000, 5_000_000):
            holes.seek(place)
            holes.write(b"data" * 100)
        holes.truncate(9_000_000)
    packed, theirs, ours = tmp_path / "m.tar.gz", tmp_path / "theirs", tmp_path / "ours"
    names = [str(source)] if "absolute" in options else ["-C", str(source), "."]
    if "incremental" not in options and "absolute" not in options:
        names.append("./again.json")  # a second time: a hard link to itself
    command = ["tar", "-czf", str(packed), *options.split(), *names]
    subprocess.run(command, check=True, capture_output=True)
    theirs.mkdir()
    ours.mkdir()
    unpack = ["tar", "-xzf", str(packed), "-C", str(theirs)]
    subprocess.run(unpack, check=True, capture_output=True)
    extract_tar_gz("m.tar.gz", inflated(packed.read_bytes()), ours)
    assert contents(ours) == contents(theirs)
    assert len(contents(ours)) >= 5


def contents(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): path.readlink()
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }
