"""The mounted layers against containerd's own unpack of the same image, and against fsck.erofs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.layers import (
    describe_tree,
    image_of,
    member,
    open_bytes,
    tar_of,
    write_oci_archive,
)
from tests.fixtures.servers import BUILD
from zeropull.erofs.tar_layer import LayerReader
from zeropull.erofs.tree import Node
from zeropull.errors import ImageError, IntegrityError, NotFound, Unavailable
from zeropull.layers.layout import layer_directory
from zeropull.layers.mount import mount_layer, unmount
from zeropull.layers.pull import pull_layers
from zeropull.linux import mounts
from zeropull.oci.images import ResolvedImage

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

REG, DIR, SYM, LNK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
CHR, BLK, FIFO = tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE
SYSTEM_FSCK = shutil.which("fsck.erofs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or ""
NEWER_FSCK = str(BUILD / "erofs-utils/fsck.erofs")
CAPABILITY = "\x01\x00\x00\x02\x00\x04\x00\x00" + "\x00" * 12
ACL = "\x02\0\0\0" + "".join(
    f"{chr(tag)}\0{chr(allowed)}\0" + who
    for tag, allowed, who in (
        (1, 6, "\0" * 4),
        (2, 7, "\x05\0\0\0"),
        (4, 4, "\0" * 4),
        (16, 7, "\0" * 4),
        (32, 0, "\0" * 4),
    )
)


def base_layer() -> bytes:
    return tar_of(
        member("./", DIR, mode=0o700),
        member("etc", DIR, mode=0o750, uid=70000, gid=4_000_000_000, xattrs={"user.who": "lower"}),
        member("etc/passwd", data=b"root\n" * 3000, mode=0o4755, mtime=1234567890.123456789),
        member("etc/linked", LNK, linkname="etc/passwd", mode=0o640, uid=5),
        member("etc/abs", SYM, linkname="/usr/share"),
        member("etc/long", SYM, linkname="x/" * 1500 + "y"),
        member("usr/share/implied/deep/file", data=b"x"),
        member("dev/null", CHR, devmajor=1, devminor=3, mode=0o666),
        member("dev/big", BLK, devmajor=259, devminor=70000),
        member("run/pipe", FIFO, mode=0o600),
        member("bin/ping", data=b"p" * 4096, xattrs={"security.capability": CAPABILITY}),
        member("acl", mode=0o640, xattrs={"system.posix_acl_access": ACL}),
        member("n" * 200 + "/" + "m" * 255, data=b"long names"),
        member("old", data=b"", mtime=-5),
        member("far", data=b"", mtime=10**11),
        member("sticky", DIR, mode=0o1777),
        member("\udcff\udcfenot-utf8", data=b"bytes"),
        member("-x"),
        member("+x"),
        member("!x"),
        member("twice", data=b"first"),
        member("twice", data=b"the last wins"),
        member("was-dir", DIR),
        member("was-dir/child"),
        member("was-dir", data=b"now a file"),
        member("opaque/a", data=b"a"),
        member("opaque/b", data=b"b"),
        member("gone/x", data=b"1"),
        member("link-to-dir", SYM, linkname="usr"),
        member("../../escape", data=b"contained"),
        member("/absolute", data=b"contained"),
        member("through", SYM, linkname="/../../etc"),
        member("through/inside", data=b"in etc"),
        member("wide", DIR),
        *(member(f"wide/{i:06}-{'w' * (i % 50)}", data=b"%d" % i) for i in range(2000)),
        member("exact-4096", data=b"e" * 4096),
        member("exact-8192", data=b"e" * 8192),
        member("large", data=random.Random(1).randbytes(3_000_001)),
    )


def upper_layer() -> bytes:
    return tar_of(
        member("etc/new", data=b"in an implied directory"),
        member("etc/.wh.abs"),
        member(".wh.gone"),
        member("opaque/.wh..wh..opq"),
        member("opaque/c", data=b"c"),
        member("link-to-dir/hidden", data=b"replaces the symlink"),
        member("usr/share/implied/deep/file", data=b"changed"),
        member("wide/000001-w", data=b"changed"),
        member("sticky", DIR, mode=0o711, xattrs={"user.a": "b"}),
    )


@contextlib.contextmanager
def private_containerd(directory: Path) -> Iterator[Path]:
    """A containerd with its own folders; yields its socket."""
    socket = directory / "c.sock"
    config = directory / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{socket}"\n'
        f'[ttrpc]\naddress = "{socket}.ttrpc"\n'
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["containerd", "-c", str(config)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while subprocess.run(
            ["ctr", "-a", str(socket), "version"], capture_output=True, check=False
        ).returncode:
            assert process.poll() is None and time.monotonic() < deadline, (
                directory / "log"
            ).read_text()
        yield socket
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def unpacked_by_containerd(socket: Path, image: ResolvedImage, target: Path) -> Iterator[Path]:
    """The image that has been imported, as containerd's overlayfs snapshotter has it.

    Not by `ctr images mount`, which since containerd 2.2 asks the kernel for a file system "bind".
    """
    # The view is collected soon; the image keeps the layers.
    view = ["ctr", "-a", str(socket), "snapshots", "view", "--target", str(target)]
    shown = subprocess.run(
        [*view, str(target), image.chain_ids[-1]], check=True, capture_output=True, text=True
    )
    # mount -t bind SOURCE TARGET -o ro,rbind, or: mount -t overlay overlay TARGET -o OPTIONS
    *_, source, _, _, options = shlex.split(shown.stdout)
    lowers = options.partition("lowerdir=")[2].partition(",")[0]
    folders = [Path(folder) for folder in (lowers or source).split(":")][::-1]
    root = folders[0].parents[1]
    relative = [folder.relative_to(root) for folder in folders]
    # As containerd does: many whole paths are more than the kernel takes.
    with contextlib.chdir(root), overlay(relative, target) as mounted:
        yield mounted


@contextlib.contextmanager
def overlay(lowers: list[Path], target: Path) -> Iterator[Path]:
    target.mkdir()
    if len(lowers) == 1:
        yield lowers[0]
        return
    options = "lowerdir=" + ":".join(map(str, reversed(lowers)))
    mounts.mount("overlay", target, "overlay", flags=mounts.MS_RDONLY, options=options)
    try:
        yield target
    finally:
        unmount(target)


@contextlib.contextmanager
def mounted_layers(
    image: ResolvedImage, store: Path, directory: Path, *, use_loop: bool
) -> Iterator[list[Path]]:
    with contextlib.ExitStack() as stack:
        targets = []
        for number, chain_id in enumerate(image.chain_ids):
            target = directory / f"{number}{'l' if use_loop else 'f'}"
            target.mkdir()
            mount_layer(layer_directory(store, chain_id), target, use_loop=use_loop)
            stack.callback(unmount, target)
            targets.append(target)
        yield targets


def pull(image: ResolvedImage, blobs: list[bytes], store: Path) -> None:
    missing = list(range(len(blobs)))
    sources: list[Any] = list(blobs)
    asyncio.run(pull_layers(image, missing, sources, store, lambda _: None, open_blob=open_bytes))


def without_unpack_times(tree: dict[bytes, dict[str, Any]]) -> dict[bytes, dict[str, Any]]:
    """containerd leaves the time of unpacking on directories that a layer only implies."""
    return {
        path: {k: v for k, v in entry.items() if k != "mtime_ns" or v < 1_750_000_000 * 10**9}
        for path, entry in tree.items()
    }


def without_times(tree: dict[bytes, dict[str, Any]]) -> dict[bytes, dict[str, Any]]:
    """containerd sets a directory's time at the end, even on a file that has replaced it."""
    return {
        path: {key: value for key, value in entry.items() if key != "mtime_ns"}
        for path, entry in tree.items()
    }


@pytest.fixture
def workdir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="zp-ic-"))  # short: sockets lie there
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd and ctr")
def test_mounted_layers_equal_what_containerd_unpacks(workdir: Path) -> None:
    image, blobs = image_of([base_layer(), upper_layer(), tar_of()])
    store = workdir / "layers"
    pull(image, blobs, store)
    archive = workdir / "image.tar"
    write_oci_archive(image, blobs, archive)
    with private_containerd(workdir) as socket:
        ctr = ["ctr", "-a", str(socket)]
        subprocess.run([*ctr, "images", "import", str(archive)], check=True, capture_output=True)
        with unpacked_by_containerd(socket, image, workdir / "theirs") as theirs:
            truth = describe_tree(theirs)
    assert len(truth) > 2000
    for use_loop in (False, True):
        with (
            mounted_layers(image, store, workdir, use_loop=use_loop) as layers,
            overlay(layers, workdir / f"ours-{use_loop}") as ours,
        ):
            found = describe_tree(ours)
        assert sorted(found) == sorted(truth)
        expected = without_unpack_times(truth)
        for path, entry in expected.items():
            mine = {key: found[path].get(key) for key in entry}
            assert mine == entry, path


def random_layer(chance: random.Random) -> bytes:
    """Members over few names, so that they replace, merge, link and hide one another."""
    names = ["a", "b", "c", "d/e", "a/b", "a/b/c", "b/c", "c/../d", "./a", "/b/a", "d"]
    kinds = [REG, REG, REG, DIR, DIR, SYM, LNK, FIFO, CHR]
    members = []
    for _ in range(16):
        name, kind = chance.choice(names), chance.choice(kinds)
        fields: dict[str, Any] = {
            "mode": chance.randrange(0o10000),
            "uid": chance.randrange(100_000),
            "mtime": chance.randrange(10**9) + 0.5,
        }
        if chance.random() < 0.15:
            directory, _, base = name.rpartition("/")
            base = ".wh." + base if chance.random() < 0.6 else ".wh..wh..opq"
            members.append(member(f"{directory}/{base}"))
        elif kind == SYM:
            target = chance.choice([*names, "/", "..", "../../x", "missing/deep"])
            members.append(member(name, SYM, linkname=target, **fields))
        elif kind == LNK:
            members.append(member(name, LNK, linkname=chance.choice(names), **fields))
        elif kind == REG:
            fields["xattrs"] = (
                {"user.k": "v" * chance.randrange(9)} if chance.random() < 0.3 else {}
            )
            data = chance.randbytes(chance.choice([0, 1, 4095, 4096, 4097, 9000]))
            members.append(member(name, data=data, **fields))
        else:
            members.append(member(name, kind, devmajor=1, devminor=7, **fields))
    # Some members are impossible after their predecessors, and containerd 1.6 fails on some more:
    # a directory that is replaced later, a whiteout beside an entry of its name.
    kept: list[Any] = []
    before = (0, 0)
    for item in members:
        with contextlib.suppress(ImageError):
            stream = iter([memoryview(tar_of(*kept, item))])
            tree = LayerReader(stream, MemorySink()).read()
            after = count_nodes(tree.root)
            name = item[0].name.rpartition("/")[2]
            useless = name.startswith(".wh.") and name != ".wh..wh..opq" and after == before
            if not tree.pending and after[0] >= before[0] and not useless:
                kept.append(item)
                before = after
    return tar_of(*kept)


def count_nodes(node: Node) -> tuple[int, int]:
    """Directories and other entries below the node."""
    directories = others = 0
    for child in (node.children or {}).values():
        if child.children is None:
            others += 1
        else:
            below = count_nodes(child)
            directories, others = directories + 1 + below[0], others + below[1]
    return directories, others


class MemorySink:
    """A data file that nobody reads."""

    def begin(self) -> int:
        return 0

    def write(self, data: memoryview) -> None:
        pass


@pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd and ctr")
def test_random_images_equal_what_containerd_unpacks(workdir: Path) -> None:
    compared = 0
    with private_containerd(workdir) as socket:
        ctr = ["ctr", "-a", str(socket)]
        for seed in range(20):
            chance = random.Random(seed)
            image, blobs = image_of([random_layer(chance) for _ in range(3)])
            image = dataclasses.replace(image, reference=f"registry.test/random:{seed}")
            directory = workdir / f"r{seed}"
            directory.mkdir()
            write_oci_archive(image, blobs, directory / "image.tar")
            imported = subprocess.run(
                [*ctr, "images", "import", str(directory / "image.tar")],
                capture_output=True,
                text=True,
                check=False,
            )
            if imported.returncode:
                # Refused by containerd: there is no truth to compare with.
                continue
            with unpacked_by_containerd(socket, image, directory / "theirs") as theirs:
                truth = without_times(describe_tree(theirs))
            pull(image, blobs, directory / "layers")
            with (
                mounted_layers(image, directory / "layers", directory, use_loop=False) as layers,
                overlay(layers, directory / "ours") as ours,
            ):
                found = describe_tree(ours)
            assert sorted(found) == sorted(truth), seed
            for path, entry in truth.items():
                assert {key: found[path].get(key) for key in entry} == entry, (seed, path)
            compared += 1
    assert compared >= 5


@pytest.mark.parametrize("fsck", [SYSTEM_FSCK, NEWER_FSCK], ids=["system", "newer"])
def test_fsck_erofs_finds_nothing_and_extracts_everything(workdir: Path, fsck: str) -> None:
    if shutil.which(fsck) is None:
        pytest.skip(f"no {fsck}: the system's erofs-utils is as new, or Debian was out of reach")
    image, blobs = image_of([base_layer(), upper_layer(), tar_of()])
    store = workdir / "layers"
    pull(image, blobs, store)
    for number, chain_id in enumerate(image.chain_ids):
        layer = layer_directory(store, chain_id)
        device = [f"--device={layer}/data.erofs"] if (layer / "data.erofs").stat().st_size else []
        extract = f"--extract={workdir}/x{number}"
        for options in ([], [extract]):
            result = subprocess.run(
                [fsck, *device, *options, str(layer / "meta.erofs")],
                capture_output=True,
                text=True,
                check=False,
            )
            assert result.returncode == 0, result.stdout + result.stderr
    assert (workdir / "x0/large").read_bytes() == random.Random(1).randbytes(3_000_001)


def test_a_hard_link_to_a_file_of_a_lower_layer_becomes_a_copy(workdir: Path) -> None:
    lower = tar_of(member("a/f", data=b"data" * 5000, mode=0o600), member("a/l", SYM, linkname="f"))
    upper = tar_of(
        member("b/f", LNK, linkname="a/f", mode=0o600), member("b/l", LNK, linkname="a/l")
    )
    image, blobs = image_of([lower, upper])
    store = workdir / "layers"
    pull(image, blobs, store)
    with mounted_layers(image, store, workdir, use_loop=False) as layers:
        assert (layers[1] / "b/f").read_bytes() == b"data" * 5000
        assert (layers[1] / "b/l").readlink() == Path("f")


def test_files_over_four_gib_and_sparse_ones_are_readable(workdir: Path) -> None:
    source = workdir / "sparse"
    with source.open("wb") as file:
        file.write(b"begin")
        file.seek(5 << 30)
        file.write(b"end")
    for number, options in enumerate(
        (
            ["--format=gnu"],
            *(["--format=posix", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0")),
        )
    ):
        tar = subprocess.run(
            ["tar", "-cS", *options, "-C", str(workdir), "sparse"], check=True, capture_output=True
        ).stdout
        image, blobs = image_of([tar])
        store = workdir / f"layers{number}"
        pull(image, blobs, store)
        directory = workdir / f"m{number}"
        directory.mkdir()
        with (
            mounted_layers(image, store, directory, use_loop=False) as layers,
            (layers[0] / "sparse").open("rb") as file,
        ):
            assert os.fstat(file.fileno()).st_size == (5 << 30) + 3
            assert file.read(8) == b"begin\0\0\0"
            file.seek(-8, os.SEEK_END)
            assert file.read() == b"\0\0\0\0\0end"


def test_layers_whose_files_do_not_fit_together_are_not_mounted(workdir: Path) -> None:
    image, blobs = image_of([tar_of(member("f", data=b"x" * 9000))])
    pull(image, blobs, workdir / "layers")
    layer = layer_directory(workdir / "layers", image.chain_ids[0])
    target = workdir / "m"
    target.mkdir()
    os.truncate(layer / "data.erofs", 8192)
    with pytest.raises(IntegrityError, match="expected"):
        mount_layer(layer, target)
    with pytest.raises(NotFound):
        mount_layer(workdir / "nothing", target)
    assert unmount(target) is False


def test_paths_with_commas_and_lazy_unmounts_work(workdir: Path) -> None:
    image, blobs = image_of([tar_of(member("f", data=b"x" * 9000))])
    pull(image, blobs, workdir / "a,b")
    layer = layer_directory(workdir / "a,b", image.chain_ids[0])
    target = workdir / "m,n"
    target.mkdir()
    mount_layer(layer, target, use_loop=False)
    with (target / "f").open("rb") as file:
        with pytest.raises(Unavailable):
            unmount(target)
        assert unmount(target, lazy=True)
        assert file.read() == b"x" * 9000
    assert list(target.iterdir()) == []
