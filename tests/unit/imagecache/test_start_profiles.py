"""Start profiles as documents: order of first use, blocks, bounds."""

from __future__ import annotations

import pytest

from zeropull.errors import IntegrityError
from zeropull.imagecache.profile import (
    PageRun,
    StartProfile,
    decode_profile,
    encode_profile,
    first_uses,
)

PROFILE = StartProfile(
    "sha256:" + "a" * 64,
    ("sha256:" + "b" * 64, "sha256:" + "c" * 64),
    (PageRun(1, 100, 30), PageRun(0, 0, 1), PageRun(1, 60, 10)),
    ordered=True,
)


def test_pages_are_kept_once_in_the_order_of_their_first_use() -> None:
    touches = [PageRun(0, 10, 4), PageRun(1, 0, 2), PageRun(0, 8, 10), PageRun(0, 18, 1)]
    assert first_uses(touches) == [
        PageRun(0, 10, 4),
        PageRun(1, 0, 2),
        PageRun(0, 8, 2),
        PageRun(0, 14, 5),
    ]


def test_neighbours_in_a_row_become_one_run() -> None:
    assert first_uses([PageRun(0, n, 1) for n in range(64)]) == [PageRun(0, 0, 64)]


def test_pages_that_came_before_add_nothing() -> None:
    assert first_uses([PageRun(0, 0, 9), PageRun(0, 3, 2)]) == [PageRun(0, 0, 9)]


def test_a_profile_survives_its_document() -> None:
    assert decode_profile(encode_profile(PROFILE)) == PROFILE


def test_its_size_counts_pages_of_the_mounted_files() -> None:
    assert PROFILE.size_bytes == 41 * 4096


def test_blocks_are_those_that_runs_touch_in_order() -> None:
    assert PROFILE.blocks(1) == [1, 2, 0]
    assert PROFILE.blocks(0) == [0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff",
        encode_profile(PROFILE).replace(b"[1,100,30]", b"[2,100,30]"),
        encode_profile(PROFILE).replace(b"[1,100,30]", b"[1,-1,30]"),
        encode_profile(PROFILE).replace(b"[1,100,30]", b"[1,100,0]"),
        encode_profile(PROFILE).replace(b'"format":1', b'"format":2'),
    ],
)
def test_what_is_no_profile_is_refused(content: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_profile(content)
