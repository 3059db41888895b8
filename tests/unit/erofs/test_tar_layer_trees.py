"""Generated layers: written, read back, and compared with a plain model of containerd's rules."""

from __future__ import annotations

import io
import random
import stat
import struct
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.layers import MemorySink, member, tar_of
from zeropull.erofs.lower import fill_implied, resolve_links
from zeropull.erofs.reader import Inode, MetadataImage
from zeropull.erofs.tar_headers import parse_header
from zeropull.erofs.tar_layer import LayerLimits, LayerReader
from zeropull.erofs.tree import Entry, LayerTree, clean_path
from zeropull.erofs.writer import write_metadata
from zeropull.erofs.xattrs import acl_after_chmod
from zeropull.errors import ImageError, IntegrityError

DIR, SYM, LNK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def pieces(content: bytes, size: int) -> Iterator[memoryview]:
    """One reused buffer, as the converter hands them out."""
    buffer = bytearray(size)
    for start in range(0, len(content), size):
        part = content[start : start + size]
        buffer[: len(part)] = part
        yield memoryview(buffer)[: len(part)]


def read_layer(
    tar: bytes, *, piece: int = 1 << 16, limits: LayerLimits | None = None
) -> tuple[LayerTree, MemorySink]:
    sink = MemorySink()
    tree = LayerReader(pieces(tar, piece), sink, limits).read()
    sink.begin()
    return tree, sink


def image_from(tar: bytes, *, lowers: tuple[MetadataImage, ...] = ()) -> MetadataImage:
    tree, sink = read_layer(tar)
    fill_implied(tree, lowers)
    resolve_links(tree, lowers, len(sink.content) // 4096)
    return MetadataImage(write_metadata(tree, len(sink.content) // 4096))


def walk(image: MetadataImage) -> dict[bytes, Inode]:
    found: dict[bytes, Inode] = {}
    waiting = [(b"", image.root)]
    while waiting:
        prefix, directory = waiting.pop()
        for name, nid in image.entries(directory):
            inode = image.inode(nid)
            found[prefix + name] = inode
            if inode.is_directory:
                waiting.append((prefix + name + b"/", inode))
    return found


def content_of(image: MetadataImage, inode: Inode, data: bytes) -> bytes:
    bits, blocks = image.chunks(inode)
    content = bytearray()
    for block in blocks:
        start = block * 4096
        part = data[start : start + (1 << bits)]
        content += bytes(1 << bits) if block == 0xFFFFFFFF else part.ljust(1 << bits, b"\0")
    return bytes(content[: inode.size])


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=40)
paths = st.lists(st.sampled_from(["a", "b", "c", "é", "-x", "!"]) | names, min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(paths, st.binary(max_size=9000)), max_size=30), st.integers(1, 20000))
def test_regular_files_come_back_with_their_contents(
    files: list[tuple[list[str], bytes]], piece: int
) -> None:
    expected: dict[bytes, bytes] = {}
    members = []
    for parts, data in files:
        name = "/".join(parts)
        clean = clean_path(name.encode())
        base = clean.rpartition(b"/")[2]
        above = [clean[:i] for i, c in enumerate(clean) if c == 0x2F]
        if not base or base.startswith(b".wh.") or any(path in expected for path in above):
            continue
        if any(len(part.encode()) > 255 for part in parts):
            continue
        for path in [path for path in expected if path.startswith(clean + b"/")]:
            del expected[path]
        expected[clean] = data
        members.append(member(name, data=data))
    tree, sink = read_layer(tar_of(*members), piece=piece)
    image = MetadataImage(write_metadata(tree, len(sink.content) // 4096))
    found = {
        path: content_of(image, inode, bytes(sink.content))
        for path, inode in walk(image).items()
        if stat.S_ISREG(inode.mode)
    }
    assert found == expected


@settings(max_examples=30, deadline=None)
@given(st.sets(st.binary(min_size=1, max_size=60), max_size=400))
def test_every_name_of_a_directory_is_found_again(random_names: set[bytes]) -> None:
    wanted = {
        name.replace(b"\0", b"_").replace(b"/", b"_")
        for name in random_names
        if not name.startswith(b".")
    }
    tar = tar_of(
        *(member("d/" + name.decode("utf-8", "surrogateescape")) for name in sorted(wanted)),
        format=tarfile.GNU_FORMAT,
    )
    image = image_from(tar)
    directory = image.lookup(image.root, b"d")
    if not wanted:
        assert directory is None
        return
    assert directory is not None
    assert [name for name, _ in image.entries(directory)] == sorted(wanted)
    for name in wanted:
        assert image.lookup(directory, name) is not None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_tar_streams_end_in_an_image_error_or_a_tree(data: st.DataObject) -> None:
    tar = bytearray(tar_of(member("a", data=b"x" * 700), member("b", SYM, linkname="a" * 150)))
    for _ in range(data.draw(st.integers(1, 4))):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
    tar = tar[: data.draw(st.integers(0, len(tar)))]
    try:
        read_layer(bytes(tar))
    except ImageError as error:
        assert str(error)


def test_equal_layers_give_equal_bytes() -> None:
    tar = tar_of(*(member(f"d{i % 7}/f{i}", data=b"%d" % i) for i in range(300)))
    first, _ = read_layer(tar, piece=512)
    second, _ = read_layer(tar, piece=99_999)
    assert write_metadata(first, 300) == write_metadata(second, 300)
    assert write_metadata(first, 300) == write_metadata(first, 300)


def test_a_directory_with_100_000_entries_is_sorted_and_complete() -> None:
    shuffled = list(range(100_000))
    random.Random(7).shuffle(shuffled)
    tree = LayerTree()
    for number in shuffled:
        tree.add(Entry(b"d/%x" % number, stat.S_IFREG, 0o644, 0, 0, 0, 0))
    image = MetadataImage(write_metadata(tree, 0))
    directory = image.lookup(image.root, b"d")
    assert directory is not None
    listed = [name for name, _ in image.entries(directory)]
    assert listed == sorted(f"{i:x}".encode() for i in range(100_000))
    assert image.lookup(directory, b"1869f") is not None


def test_implied_directories_take_the_lower_layers_attributes() -> None:
    lower = image_from(
        tar_of(
            member("real", DIR, mode=0o710, uid=7, mtime=5, xattrs={"user.a": "b"}),
            member("real/sub", DIR, mode=0o1777),
            member("alias", SYM, linkname="/real"),
            member("file"),
        )
    )
    upper = walk(
        image_from(
            tar_of(member("real/sub/new"), member("alias/x"), member("other/y")), lowers=(lower,)
        )
    )
    assert (upper[b"real"].mode, upper[b"real"].uid, upper[b"real"].mtime_s) == (0o40710, 7, 5)
    assert upper[b"real/sub"].mode == 0o41777
    assert upper[b"alias"].mode == 0o40710  # containerd follows the symlink to find attributes
    assert upper[b"other"].mode == 0o40755


def test_hard_links_share_the_inode_and_count() -> None:
    found = walk(image_from(tar_of(member("f", data=b"x"), member("g", LNK, linkname="./f"))))
    assert found[b"f"].nid == found[b"g"].nid
    assert found[b"f"].nlink == 2


def test_whiteouts_and_opaque_directories_become_overlay_ones() -> None:
    image = image_from(tar_of(member("d/.wh.x"), member("d/.wh..wh..opq"), member("d/y")))
    found = walk(image)
    assert found[b"d/x"].is_whiteout
    assert image.xattrs(found[b"d"]) == {b"trusted.overlay.opaque": b"y"}
    assert not any(b".wh." in path for path in found)


def test_an_access_control_list_follows_the_mode_as_chmod_makes_it() -> None:
    def acl(*entries: tuple[int, int, int]) -> bytes:
        return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)

    everyone = 0xFFFFFFFF
    named = acl((1, 6, everyone), (2, 7, 5), (4, 4, everyone), (16, 7, everyone), (32, 0, everyone))
    assert acl_after_chmod(named, 0o640) == acl(
        (1, 6, everyone), (2, 7, 5), (4, 4, everyone), (16, 4, everyone), (32, 0, everyone)
    )
    assert (
        acl_after_chmod(acl((1, 6, everyone), (4, 4, everyone), (32, 0, everyone)), 0o640) is None
    )
    with pytest.raises(ImageError, match="malformed"):
        acl_after_chmod(b"x", 0o640)


def test_a_path_that_led_elsewhere_before_is_followed_anew() -> None:
    tree, _ = read_layer(
        tar_of(
            member("real/", DIR),
            member("way", SYM, linkname="later/../real"),
            member("way/first"),
            member("deep/dir/", DIR),
            member("later", SYM, linkname="deep/dir"),
            member("way/second"),
            member("real/third"),
            member("way", SYM, linkname="deep"),
            member("way/fourth"),
            member("deep/dir"),
            member("deep/dir", SYM, linkname="../real"),
            member("deep/dir/fifth"),
        )
    )
    found = ("real/first", "deep/real/second", "real/third", "deep/fourth", "real/fifth")
    assert [tree.find(path.encode()) is not None for path in found] == [True] * 5


@pytest.mark.parametrize(
    ("field", "number"),
    [
        (b"0000644\0", 0o644),
        (b"0000644 ", 0o644),
        (b"   644 \0", 0o644),
        (b"644\0junk", 0o644),
        (b"\0\0\0\0\0\0\0\0", 0),
        (b"00000644", 0o644),
        (b"\x80\0\0\0\0\0\x01\xa4", 0o644),
    ],
)
def test_numbers_in_headers_are_read_as_they_may_be_written(field: bytes, number: int) -> None:
    for _ in range(2):
        assert parse_header(header_with(100, field)).mode == number


@pytest.mark.parametrize("field", [b"0000689\0", b"0x00644\0", b"00006a4\0"])
def test_what_is_no_number_is_refused(field: bytes) -> None:
    for _ in range(2):
        with pytest.raises(ImageError, match="whose mode is"):
            parse_header(header_with(100, field))


@given(st.binary(min_size=504, max_size=504), st.integers(0, 511), st.integers(1, 255))
def test_a_checksum_holds_for_any_bytes_and_for_no_others(
    content: bytes, place: int, change: int
) -> None:
    block = bytearray(content[:148] + b"        " + content[148:])
    block[100:108] = block[108:116] = block[116:124] = b"0000001\0"
    block[124:136] = block[136:148] = b"00000000001\0"
    block[156:157] = b"0"
    block[148:156] = b"%06o\0 " % sum(block)
    parse_header(bytes(block))
    if not 100 <= place < 156:
        block[place] = (block[place] + change) % 256
        with pytest.raises(ImageError, match="wrong checksum"):
            parse_header(bytes(block))


def header_with(place: int, field: bytes) -> bytes:
    block = bytearray(tar_of(member("name"))[:512])
    block[place : place + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_a_hard_link_without_a_target_is_refused() -> None:
    with pytest.raises(ImageError, match="missing in the layers below"):
        image_from(tar_of(member("g", LNK, linkname="nowhere")))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([member("f"), member("f/g")], "not a directory"),
        ([member("x" * 300)], "longer"),
        ([member("l", SYM, linkname="")], "symbolic link of 0 bytes"),
        ([member("d", DIR), member("h", LNK, linkname="d")], "hard link to the directory"),
        ([member(".wh..")], "invalid whiteout"),
        ([member("a", SYM, linkname="b"), member("b", SYM, linkname="a"), member("a/x")], "links"),
        ([member("x", b"Z")], "unknown type"),
        ([member("c", tarfile.CHRTYPE, devmajor=5000)], "beyond what Linux knows"),
    ],
)
def test_members_that_containerd_refuses_are_refused(members: list[object], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_layer(tar_of(*members))


def test_absurd_sizes_are_refused_before_anything_is_read() -> None:
    info = tarfile.TarInfo("huge")
    info.size = 1 << 60
    with pytest.raises(ImageError, match="over the layer's limit"):
        read_layer(info.tobuf(tarfile.GNU_FORMAT))
    info = tarfile.TarInfo("header")
    info.type = b"x"
    info.size = 1 << 30
    with pytest.raises(ImageError, match="extended header of"):
        read_layer(info.tobuf(tarfile.GNU_FORMAT))


def test_more_entries_than_the_limit_are_refused() -> None:
    with pytest.raises(ImageError, match="more than 10 entries"):
        read_layer(tar_of(*(member(f"f{i}") for i in range(20))), limits=LayerLimits(entries=10))


def test_a_truncated_stream_is_refused() -> None:
    tar = tar_of(member("f", data=b"x" * 10_000))
    with pytest.raises(ImageError, match="truncated"):
        read_layer(tar[:5000])


def test_a_global_pax_header_is_read_past() -> None:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}
    ) as archive:
        archive.addfile(tarfile.TarInfo("f"))
    assert sorted(walk(image_from(buffer.getvalue()))) == [b"f"]


def test_a_flipped_byte_in_the_superblock_is_noticed() -> None:
    tree, _ = read_layer(tar_of(member("f")))
    meta = write_metadata(tree, 0)
    meta[1100] ^= 1
    with pytest.raises(IntegrityError):
        MetadataImage(meta)
