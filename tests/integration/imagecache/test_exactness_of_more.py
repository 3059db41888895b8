"""Real images, deep ones and the rarer shapes of a tar, against containerd's own unpack."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.layers import describe_tree, image_of, member, tar_of, write_oci_archive
from tests.fixtures.server_image import python_server_image
from tests.integration.imagecache.test_layer_exactness import (
    mounted_layers,
    overlay,
    private_containerd,
    pull,
    unpacked_by_containerd,
    without_unpack_times,
)
from tests.integration.imagecache.test_layer_exactness import workdir as workdir
from zeropull.oci.images import ResolvedImage

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd and ctr"),
]

REG, DIR, SYM, LNK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
Tree = dict[bytes, dict[str, Any]]


@pytest.fixture
def containerd(workdir: Path) -> Iterator[Path]:
    with private_containerd(workdir) as socket:
        yield socket


def unpacked(socket: Path, image: ResolvedImage, blobs: list[bytes], directory: Path) -> Tree:
    """The tree that containerd makes of the image."""
    archive = directory / "image.tar"
    write_oci_archive(image, blobs, archive)
    ctr = ["ctr", "-a", str(socket), "images", "import", str(archive)]
    done = subprocess.run(ctr, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with unpacked_by_containerd(socket, image, directory / "theirs") as theirs:
        return describe_tree(theirs)


def assert_equal_to_containerd(
    socket: Path, image: ResolvedImage, blobs: list[bytes], directory: Path, *, use_loop: bool
) -> Tree:
    truth = unpacked(socket, image, blobs, directory)
    pull(image, blobs, directory / "l")
    with (
        mounted_layers(image, directory / "l", directory, use_loop=use_loop) as layers,
        overlay(layers, directory / "ours") as ours,
    ):
        found = describe_tree(ours)
    assert sorted(found) == sorted(truth)
    for path, entry in without_unpack_times(truth).items():
        assert {key: found[path].get(key) for key in entry} == entry, path
    return found


@pytest.mark.parametrize("use_loop", [False, True], ids=["files", "loop-devices"])
def test_a_real_image_equals_what_containerd_unpacks(
    containerd: Path, workdir: Path, use_loop: bool
) -> None:
    layers = python_server_image().layers
    blobs = [b if isinstance(b := layer.content, bytes) else b.read_bytes() for layer in layers]
    tars = [gzip.decompress(blob) for blob in blobs]
    image, blobs = image_of(tars)
    found = assert_equal_to_containerd(containerd, image, blobs, workdir, use_loop=use_loop)
    assert sum("content" in entry for entry in found.values()) > 500


def test_an_image_of_110_layers_equals_what_containerd_unpacks(
    containerd: Path, workdir: Path
) -> None:
    tars = [
        tar_of(
            member(f"d/f{number}", data=b"%d" % number),
            member("d/last", data=b"layer %d" % number),
            *([member(f"d/.wh.f{number - 50}")] if number >= 50 else []),
        )
        for number in range(110)
    ]
    image, blobs = image_of(tars)
    found = assert_equal_to_containerd(containerd, image, blobs, workdir, use_loop=False)
    assert len([path for path in found if path.startswith(b"d/f")]) == 50


def test_gnu_headers_equal_what_containerd_unpacks(containerd: Path, workdir: Path) -> None:
    """Long names and targets in members of their own, large numbers in base 256."""
    long = "g" * 180 + "/" + "n" * 250
    tars = [
        tar_of(
            member(long, data=b"x" * 5000, uid=3_000_000, gid=70_000_000),
            member("hard", LNK, linkname=long, uid=3_000_000, gid=70_000_000),
            member("soft", SYM, linkname="t/" * 700 + "end"),
            member("d" * 120, DIR, mode=0o2750, mtime=1 << 34),
            format=tarfile.GNU_FORMAT,
        )
    ]
    image, blobs = image_of(tars)
    found = assert_equal_to_containerd(containerd, image, blobs, workdir, use_loop=False)
    assert found[b"hard"]["nlink"] == 2
    assert len(found[b"soft"]["target"]) == 1403


def test_sparse_files_equal_what_containerd_unpacks(containerd: Path, workdir: Path) -> None:
    """As PAX has them: GNU's own type of member is one that containerd refuses."""
    source = workdir / "sparse"
    with source.open("wb") as file:
        for place in (0, 5 << 20, (9 << 20) + 17):
            file.seek(place)
            file.write(os.urandom(9000))
        file.truncate(16 << 20)
    tars = [
        subprocess.run(
            ["tar", "-cS", *options, f"--transform=s/^/{number}-/", "-C", str(workdir), "sparse"],
            check=True,
            capture_output=True,
        ).stdout
        for number, options in enumerate(
            ["--format=posix", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0")
        )
    ]
    image, blobs = image_of(tars)
    found = assert_equal_to_containerd(containerd, image, blobs, workdir, use_loop=False)
    assert {entry["size"] for entry in found.values()} == {16 << 20}
    assert len({entry["content"] for entry in found.values()}) == 1


def test_a_directory_with_100_000_entries_is_all_there(workdir: Path) -> None:
    names = [f"d/{number:06}{'x' * (number % 30)}" for number in range(100_000)]
    members = (member(name) for name in names)
    image, blobs = image_of([tar_of(*members, format=tarfile.USTAR_FORMAT)])
    pull(image, blobs, workdir / "l")
    with mounted_layers(image, workdir / "l", workdir, use_loop=False) as layers:
        assert sorted(f"d/{path.name}" for path in (layers[0] / "d").iterdir()) == names
        assert all((layers[0] / name).is_file() for name in names[::997])
        assert not (layers[0] / "d/absent").exists()
