"""Start profiles as documents: order of first use, blocks, bounds."""

from __future__ import annotations

import pytest

from zeropull.errors import IntegrityError
from zeropull.startprofiles.profile import (
    PageRun,
    ProfileFile,
    StartProfile,
    decode_profile,
    encode_profile,
    first_uses,
)

PROFILE = StartProfile(
    "sha256:" + "a" * 64,
    ("sha256:" + "b" * 64, "sha256:" + "c" * 64),
    (ProfileFile(1, b"usr/lib/\xff"), ProfileFile(0, b"bin/sh")),
    (PageRun(0, 4, 30, 100), PageRun(1, 0, 1, 0), PageRun(0, 40, 10, 60)),
    ordered=True,
)


def test_pages_are_kept_once_in_the_order_of_their_first_use() -> None:
    touches = [
        PageRun(0, 10, 4, 110),
        PageRun(1, 0, 2, 7),
        PageRun(0, 8, 10, 108),
        PageRun(0, 18, 1, 118),
    ]
    assert first_uses(touches) == [
        PageRun(0, 10, 4, 110),
        PageRun(1, 0, 2, 7),
        PageRun(0, 8, 2, 108),
        PageRun(0, 14, 5, 114),
    ]


def test_neighbours_in_a_row_become_one_run() -> None:
    touches = [PageRun(0, n, 1, 5 + n) for n in range(64)]
    assert first_uses(touches) == [PageRun(0, 0, 64, 5)]


def test_neighbours_that_lie_apart_in_the_data_file_stay_two_runs() -> None:
    touches = [PageRun(0, 0, 1, 5), PageRun(0, 1, 1, 9)]
    assert first_uses(touches) == touches


def test_pages_that_came_before_add_nothing() -> None:
    assert first_uses([PageRun(0, 0, 9, 0), PageRun(0, 3, 2, 3)]) == [PageRun(0, 0, 9, 0)]


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
        encode_profile(PROFILE).replace(b"[0,4,30,100]", b"[2,4,30,100]"),
        encode_profile(PROFILE).replace(b"[0,4,30,100]", b"[0,-1,30,100]"),
        encode_profile(PROFILE).replace(b"[0,4,30,100]", b"[0,4,0,100]"),
        encode_profile(PROFILE).replace(b"[0,4,30,100]", b"[0,4,30,-1]"),
        encode_profile(PROFILE).replace(b"[0,4,30,100]", b"[0,9000000000000000000,30,100]"),
        encode_profile(PROFILE).replace(b"[[1,", b"[[2,"),
        encode_profile(PROFILE).replace(b'"format":2', b'"format":1'),
    ],
)
def test_what_is_no_profile_is_refused(content: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_profile(content)
