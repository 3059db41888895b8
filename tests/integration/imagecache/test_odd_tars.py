"""Layers whose tar differs in its headers, its end or its attributes, against containerd's own
unpack of the same bytes."""

from __future__ import annotations

import os
import shutil
import threading
import zlib
from pathlib import Path

import pytest
import zstandard

from tests.fixtures.layers import image_of
from tests.fixtures.raw_tar import END, GNU, file, folder, header, pax
from tests.integration.imagecache.test_exactness_of_more import (
    assert_equal_to_containerd,
)
from tests.integration.imagecache.test_exactness_of_more import containerd as containerd
from tests.integration.imagecache.test_layer_exactness import workdir as workdir
from zeropull.erofs.tar_layer import LAYER_BYTES
from zeropull.layers.tar_stream import TarStream

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd and ctr"),
]

PREFIX = b"opt/application-with-a-long-name/share/resources"
LOWER = (
    folder(b"dir/") + file(b"dir/low", b"low") + folder(b"secret/") + file(b"secret/x", b"s")
    + folder(b"pub/") + file(b"keep", b"keep") + END
)  # fmt: skip


def xattr(name: bytes, value: bytes) -> bytes:
    return pax((b"SCHILY.xattr." + name, value))


TARS = {
    "gnu-prefix": [
        folder(b"opt/")
        + file(b"name.xml", b"data", magic=GNU, uid=1_885_580_785, prefix=PREFIX)
        + file(b"times.xml", b"d", magic=GNU, prefix=b"14524567123\0" * 2)
        + END
    ],
    "ustar-version": [
        file(b"zero.xml", b"data", magic=b"ustar\0\0\0", prefix=PREFIX)
        + file(b"none.xml", b"data", magic=b"ustar\0  ", prefix=PREFIX)
        + END
    ],
    "no-padding": [folder(b"x/") + header(b"x/f", size=700) + b"q" * 700],
    "no-member": [file(b"f", b"a") + pax((b"path", b"g"))],
    "signs": [
        pax((b"mtime", b"+17"), (b"uid", b"+5"), (b"gid", b"+6"), (b"size", b"+1"))
        + file(b"f", b"a")
        + END
    ],
    "pax-chain": [pax((b"comment", b"c")) * 2000 + pax((b"path", b"g")) + file(b"f", b"a") + END],
    "trusted-opaque": [LOWER, xattr(b"trusted.overlay.opaque", b"y") + folder(b"dir/") + END],
    "trusted-redirect": [
        LOWER,
        xattr(b"trusted.overlay.redirect", b"/secret") + folder(b"pub/") + END,
    ],
    "trusted-metacopy": [LOWER, xattr(b"trusted.overlay.metacopy", b"") + file(b"keep") + END],
}


@pytest.mark.parametrize("name", TARS)
def test_odd_tars_equal_what_containerd_unpacks(name: str, workdir: Path, containerd: Path) -> None:
    image, blobs = image_of(TARS[name])
    tree = assert_equal_to_containerd(containerd, image, blobs, workdir, use_loop=False)
    assert len(tree) >= 1


def test_a_long_distance_zstd_layer_equals_what_containerd_unpacks(
    workdir: Path, containerd: Path
) -> None:
    parameters = zstandard.ZstdCompressionParameters(
        window_log=28, enable_ldm=True, compression_level=1, write_content_size=False
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters)

    def compress(tar: bytes) -> bytes:
        stream = packer.compressobj()
        return stream.compress(tar) + stream.flush()

    tar = file(b"f", os.urandom(70_000) + bytes(2 << 20)) + END
    image, blobs = image_of([tar], compress)
    assert zstandard.get_frame_parameters(blobs[0]).window_size == 256 << 20
    tree = assert_equal_to_containerd(containerd, image, blobs, workdir, use_loop=False)
    assert list(tree) == [b"f"]


def test_a_log_full_of_zeros_is_no_bomb() -> None:
    """As useradd leaves it for a large user ID: gzip makes a thousandth of it."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    blob = b"".join(packer.compress(zeros) for _ in range(1100)) + packer.flush()
    with TarStream(iter([blob]), threading.Event(), LAYER_BYTES) as stream:
        assert sum(len(view) for view in stream) == 1100 << 20
