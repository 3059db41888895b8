from __future__ import annotations

from pathlib import Path

import pytest

from zeropull.linux.mounts import parse_mountinfo


def test_mountinfo_with_spaces_is_read() -> None:
    (mount,) = parse_mountinfo(r"1 2 8:1 /a\040b /mnt/c\040d rw,nosuid - ext4 /dev/sda rw")
    assert (mount.target, mount.root, mount.type) == (Path("/mnt/c d"), "/a b", "ext4")
    assert mount.options == {"rw", "nosuid"}


@pytest.mark.parametrize("odd", ["\r", "\v", "\x1c", "\x85", "\u2028", "\udcff"])
def test_a_name_with_what_python_takes_for_the_end_of_a_line_is_one_name(odd: str) -> None:
    lines = (
        f"1 2 8:1 / /mnt/a{odd}b rw - ext4 /dev/sda rw\n2 2 8:1 / /mnt/c rw - ext4 /dev/sdb rw\n"
    )
    assert [each.target for each in parse_mountinfo(lines)] == [
        Path(f"/mnt/a{odd}b"),
        Path("/mnt/c"),
    ]
