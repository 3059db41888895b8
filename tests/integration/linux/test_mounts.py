"""Real mounts, below a folder of the test's own."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from zeropull.linux.loop_devices import read_only_loop_device
from zeropull.linux.mounts import (
    bind,
    bind_read_only,
    mount,
    mounts_below,
    read_mounts,
    unmount,
    unmount_below,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "a target with spaces"
    folder.mkdir()
    yield folder
    unmount_below(folder)


def test_a_mount_is_listed_with_its_kind_and_gone_after_unmount(target: Path) -> None:
    mount("none", target, "tmpfs", options="size=1m")
    (found,) = [each for each in read_mounts() if each.target == target]
    assert found.type == "tmpfs"
    assert unmount(target)
    assert mounts_below(target) == []


def test_unmounting_what_is_not_mounted_says_so(target: Path) -> None:
    assert not unmount(target)
    assert not unmount(target / "missing")


def test_a_busy_mount_is_refused_and_can_be_detached(target: Path) -> None:
    mount("none", target, "tmpfs")
    with (target / "open").open("w"):
        with pytest.raises(OSError, match="busy"):
            unmount(target)
        assert unmount(target, lazy=True)
    assert mounts_below(target) == []


def test_a_symbolic_link_to_a_mount_is_not_followed(target: Path, tmp_path: Path) -> None:
    mount("none", target, "tmpfs")
    (tmp_path / "link").symlink_to(target)
    assert not unmount(tmp_path / "link")
    assert len(mounts_below(target)) == 1


def test_plain_data_is_bound_without_writing_devices_and_programs(
    target: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("data")
    bind_read_only(source, target)
    assert (target / "file").read_text() == "data"
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").write_text("other")
    flags = os.statvfs(target).f_flag
    assert flags & os.ST_NOEXEC
    assert flags & os.ST_NODEV
    assert flags & os.ST_NOSUID


def test_everything_below_a_folder_goes_with_the_innermost_first(target: Path) -> None:
    mount("none", target, "tmpfs")
    (target / "inner").mkdir()
    mount("none", target / "inner", "tmpfs")
    bind(target / "inner", target / "inner")
    assert [each.target.name for each in mounts_below(target)] == ["inner", "inner", target.name]
    unmount_below(target)
    assert mounts_below(target) == []


def test_a_failed_mount_names_the_target(target: Path) -> None:
    with pytest.raises(OSError, match="No such device") as caught:
        mount("none", target, "no-such-file-system")
    assert caught.value.filename == str(target)


def test_a_loop_device_shows_the_file_and_frees_itself(tmp_path: Path) -> None:
    content = os.urandom(8192)
    (tmp_path / "image").write_bytes(content)
    with read_only_loop_device(tmp_path / "image") as device:
        assert stat.S_ISBLK(Path(device).stat().st_mode)
        assert Path(device).read_bytes() == content
        backing = Path("/sys/block") / Path(device).name / "loop/backing_file"
        assert backing.read_text().strip() == str(tmp_path / "image")
    assert not backing.exists()
