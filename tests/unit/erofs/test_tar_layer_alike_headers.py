"""Headers that differ from an earlier one in name and size only: read as all others are."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Iterator

import pytest

from tests.fixtures.layers import MemorySink, member, tar_of
from zeropull.erofs.tar_layer import LayerLimits, LayerReader
from zeropull.erofs.tree import LayerTree, Node
from zeropull.errors import ImageError

BLOCK = 512


def read(tar: bytes, limits: LayerLimits | None = None) -> tuple[LayerTree, bytes]:
    sink = MemorySink()
    return LayerReader(iter([memoryview(tar)]), sink, limits).read(), bytes(sink.content)


def described(node: Node, path: bytes = b"") -> Iterator[tuple[object, ...]]:
    yield path, node.mode, node.uid, node.gid, node.mtime_s, node.mtime_ns, node.size, node.block
    for name, child in (node.children or {}).items():
        yield from described(child, path + b"/" + name)


def files(chance: random.Random, count: int) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Few owners, modes and times over short names, long ones, and some that need extensions."""
    folders = ["a", "b/c", "/".join(["long" * 10] * 3), "é" * 40, "x" * 150]
    for number in range(count):
        yield member(
            f"{chance.choice(folders)}/f{number}",
            data=chance.randbytes(chance.choice([0, 1, 511, 512, 513, 9000])),
            mode=chance.choice([0o644, 0o755, 0o4755]),
            uid=chance.choice([0, 1000, 3_000_000]),
            mtime=chance.choice([1_700_000_000, 0, 1_600_000_000.25]),
        )


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_layer_reads_the_same_with_and_without_memory_of_headers(kind: int) -> None:
    chance = random.Random(kind)
    members = list(files(chance, 400))
    if kind == tarfile.USTAR_FORMAT:  # which has no long names, large owners or fractions
        members = [
            (info, data)
            for info, data in members
            if len(info.name.encode()) < 130 and info.uid < 1 << 20 and info.mtime % 1 == 0
        ]
    tar = tar_of(*members, format=kind)
    tree, content = read(tar)
    assert len(list(described(tree.root))) > 100
    plain_tree, plain_content = read(tar, LayerLimits(known_headers=0))
    assert list(described(tree.root)) == list(described(plain_tree.root))
    assert content == plain_content


def two_alike() -> bytearray:
    return bytearray(tar_of(member("first", data=b"1"), member("second", data=b"22")))


@pytest.mark.parametrize("place", [0, 50, 124, 130, 150, 300, 511])
def test_damage_in_a_header_like_another_one_is_found(place: int) -> None:
    tar = two_alike()
    tar[2 * BLOCK + place] ^= 1
    with pytest.raises(ImageError, match="wrong checksum"):
        read(bytes(tar))


@pytest.mark.parametrize("checksum", [b"%06o\0 ", b"%06o  ", b" %5o\0 ", b"%07o\0"])
def test_every_way_to_write_a_checksum_is_read(checksum: bytes) -> None:
    tar = two_alike()
    header = tar[2 * BLOCK : 3 * BLOCK]
    header[148:156] = b" " * 8
    tar[2 * BLOCK + 148 : 2 * BLOCK + 156] = checksum % sum(header)
    tree, content = read(bytes(tar))
    assert sorted(tree.root.children or {}) == [b"first", b"second"]
    assert content[4096:] == b"22"


def test_a_size_that_is_no_octal_number_is_an_image_error() -> None:
    tar = two_alike()
    header = tar[2 * BLOCK : 3 * BLOCK]
    header[124:136] = b"00000000009\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    tar[2 * BLOCK : 3 * BLOCK] = header
    with pytest.raises(ImageError, match="size is"):
        read(bytes(tar))


def test_a_size_in_base_256_is_read_behind_one_in_digits() -> None:
    tar = two_alike()
    header = tar[2 * BLOCK : 3 * BLOCK]
    header[124:136] = b"\x80" + (2).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    tar[2 * BLOCK : 3 * BLOCK] = header
    assert read(bytes(tar))[1][4096:] == b"22"
