"""Tar streams of old and careless writers; what containerd makes of most of them is compared in
tests/integration/imagecache/test_odd_tars.py."""

from __future__ import annotations

import pytest

from tests.fixtures.layers import MemorySink
from tests.fixtures.raw_tar import END, GNU, file, folder, header, padded, pax
from zeropull.erofs import tar_layer
from zeropull.erofs.tar_layer import LayerLimits, LayerReader
from zeropull.erofs.tree import LayerTree, Node
from zeropull.errors import ImageError, UnreadableImage
from zeropull.resources import node

PREFIX = b"opt/application/share"


def read(tar: bytes, limits: LayerLimits | None = None) -> LayerTree:
    return LayerReader(iter([memoryview(tar)]), MemorySink(), limits).read()


def found(tar: bytes, path: bytes) -> Node:
    node = read(tar).find(path)
    assert node is not None
    return node


@pytest.mark.parametrize("version", [b"\0\0", b"00", b"  ", b"7\0"])
def test_a_ustar_prefix_counts_whatever_the_version(version: bytes) -> None:
    tar = file(b"name.xml", b"data", magic=b"ustar\0" + version, prefix=PREFIX) + END
    assert found(tar, PREFIX + b"/name.xml").size == 4
    assert read(tar).find(b"name.xml") is None


def test_a_prefix_in_a_gnu_header_is_that_of_an_old_docker() -> None:
    tar = file(b"name.xml", b"data", magic=GNU, prefix=PREFIX, uid=1_885_580_785) + END
    assert found(tar, PREFIX + b"/name.xml").uid == 1_885_580_785
    assert read(tar).find(b"name.xml") is None


def test_gnu_times_are_no_prefix() -> None:
    times = b"14524567123\0" * 2
    assert found(file(b"name.xml", magic=GNU, prefix=times) + END, b"name.xml")
    binary = (b"\x80" + bytes(7) + b"\x65\0\0\0") * 2
    assert found(file(b"name.xml", magic=GNU, prefix=binary) + END, b"name.xml")
    not_text = file(b"name.xml", magic=GNU, prefix=b"\xc3\xa9" * 20) + END
    assert found(not_text, b"name.xml")


def test_many_files_of_an_old_docker_land_in_their_folders() -> None:
    tar = b"".join(file(b"f%d" % i, b"x", magic=GNU, prefix=PREFIX) for i in range(50)) + END
    assert len(found(tar, PREFIX).children or {}) == 50


@pytest.mark.parametrize("size", [1, 511, 700])
def test_the_last_padding_may_be_missing(size: int) -> None:
    content = bytes(range(256)) * 3
    tar = folder(b"x/") + header(b"x/f", size=size) + content[:size]
    for cut in (b"", bytes(1)):
        assert found(tar + cut, b"x/f").size == size
    with pytest.raises(UnreadableImage, match="truncated"):
        read(tar[:-1])


def test_a_header_that_is_cut_is_not_the_end() -> None:
    with pytest.raises(UnreadableImage, match="truncated"):
        read(file(b"a", b"x") + header(b"b")[:300])


def test_an_extended_header_without_a_member_ends_the_stream() -> None:
    for end in (b"", END):
        assert read(file(b"a") + pax((b"path", b"b")) + end).find(b"a") is not None


def test_pax_numbers_may_have_a_sign() -> None:
    tar = pax((b"mtime", b"+17.5"), (b"uid", b"+5"), (b"gid", b"6"), (b"size", b"+3"))
    node = found(tar + file(b"f", b"abc") + END, b"f")
    assert (node.mtime_s, node.mtime_ns, node.uid, node.gid, node.size) == (
        17,
        500_000_000,
        5,
        6,
        3,
    )
    for wrong in (b"+", b"+-5", b"1e3", b"0x5", b"5_0", b" 5"):
        with pytest.raises(UnreadableImage, match="is not a number"):
            read(pax((b"uid", wrong)) + file(b"f") + END)


@pytest.mark.parametrize("wrong", [b"0o17\0", b"1_7\0", b"+17\0", b"-17\0"])
def test_header_numbers_are_octal_digits_only(wrong: bytes) -> None:
    with pytest.raises(UnreadableImage, match="whose uid is"):
        read(file(b"f", uid=wrong) + END)


def test_thousands_of_extended_headers_in_a_row_are_read() -> None:
    chain = pax((b"comment", b"c")) * 3000 + pax((b"path", b"named"))
    assert read(chain + file(b"f") + END).find(b"named") is not None


@pytest.mark.parametrize(
    "name", [b"trusted.overlay.opaque", b"trusted.overlay.redirect", b"trusted.mine"]
)
def test_trusted_attributes_of_a_layer_are_never_applied(name: bytes) -> None:
    records = ((b"SCHILY.xattr." + name, b"y"), (b"SCHILY.xattr.user.kept", b"z"))
    assert found(pax(*records) + folder(b"d/") + END, b"d").xattrs == {b"user.kept": b"z"}


def test_an_opaque_marker_is_still_one() -> None:
    tar = pax((b"SCHILY.xattr.trusted.overlay.opaque", b"n")) + folder(b"d/")
    node = found(tar + file(b"d/.wh..wh..opq") + END, b"d")
    assert node.xattrs == {b"trusted.overlay.opaque": b"y"}


def test_limits_name_their_settings() -> None:
    tar = file(b"a", bytes(2000)) + file(b"b", bytes(2000)) + END
    with pytest.raises(ImageError, match=r"fleet\.layer_bytes"):
        read(tar, LayerLimits(data_bytes=3000))
    with pytest.raises(ImageError, match=r"more than 1 entries: .* fleet\.layer_entries"):
        read(tar, LayerLimits(entries=1))


def test_nodes_have_the_limits_of_a_reader_by_default() -> None:
    assert (node.LAYER_BYTES, node.LAYER_ENTRIES) == (
        tar_layer.LAYER_BYTES,
        tar_layer.LAYER_ENTRIES,
    )


def test_a_gnu_long_name_that_is_empty_keeps_the_headers() -> None:
    long = header(b"././@LongLink", b"L", 1, magic=GNU) + padded(b"\0")
    assert read(long + file(b"f") + END).find(b"f") is not None
