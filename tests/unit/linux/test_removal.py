"""Trees that a container can make are removed, and nothing else is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zeropull.linux.mounts import bind, unmount
from zeropull.linux.removal import remove_tree, try_remove_tree

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def nest(top: Path, levels: int, name: str = "d") -> None:
    """Directories in directories, deeper than any path can name; a file in each tenth."""
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for level in range(levels):
        os.mkdir(name, dir_fd=here)
        if level % 10 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


@pytest.mark.parametrize(("levels", "name"), [(5_000, "d"), (300, "n" * 255)])
def test_any_depth_is_removed_with_few_descriptors(tmp_path: Path, levels: int, name: str) -> None:
    nest(tmp_path / "deep", levels, name)
    script = (
        "import pathlib, resource, sys\n"
        "from zeropull.linux.removal import remove_tree\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "sys.setrecursionlimit(200)\n"
        "remove_tree(pathlib.Path(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "deep")], check=True)
    assert list(tmp_path.iterdir()) == []


def test_wide_trees_whose_branches_are_deep_are_removed(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    for number in range(20):
        nest(tmp_path / "top" / str(number), 100)
    for number in range(3_000):
        (tmp_path / "top" / f"file-{number}").touch()
    remove_tree(tmp_path / "top")
    assert list(tmp_path.iterdir()) == []


def test_any_name_is_removed(tmp_path: Path) -> None:
    for name in (b"\xff\xfe", b"-rf", b"new\nline", b" ", b"\\", b"*", b"x" * 255):
        folder = tmp_path / "top" / os.fsdecode(name)
        folder.mkdir(parents=True)
        (folder / os.fsdecode(name)).touch()
    os.mkfifo(tmp_path / "top" / "fifo")
    remove_tree(tmp_path / "top")
    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "folder").symlink_to(kept)
    (tmp_path / "top" / "file").symlink_to(kept / "file")
    (tmp_path / "link").symlink_to(kept)
    remove_tree(tmp_path / "top")
    remove_tree(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").exists()


def test_a_single_file_and_nothing_at_all_are_fine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remove_tree(tmp_path / "file")
    remove_tree(tmp_path / "file")
    remove_tree(tmp_path / "no" / "such")
    assert list(tmp_path.iterdir()) == []


@needs_root
@pytest.mark.parametrize("flag", ["i", "a"])
def test_immutable_and_append_only_files_are_removed(tmp_path: Path, flag: str) -> None:
    top = tmp_path / "top"
    nest(top, 40)
    (top / "d" / "locked").mkdir()
    (top / "d" / "locked" / "inner").touch()
    changed = subprocess.run(["chattr", "-R", f"+{flag}", str(top)], capture_output=True)
    if changed.returncode != 0:
        pytest.skip("this file system has no such flags")
    remove_tree(top)
    assert list(tmp_path.iterdir()) == []


@needs_root
def test_what_is_mounted_below_stays_and_is_told_and_the_rest_goes(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "inner").mkdir(parents=True)
    top = tmp_path / "top"
    for name in ("a", "mounted", "z"):
        (top / name).mkdir(parents=True)
    (top / "a" / "file").touch()
    bind(kept, top / "mounted")
    try:
        with pytest.raises(OSError) as caught:
            remove_tree(top)
        assert caught.value.errno in (errno.EXDEV, errno.EBUSY)
        assert not try_remove_tree(top)
        assert [path.name for path in top.iterdir()] == ["mounted"]
        assert (kept / "inner").is_dir()
    finally:
        unmount(top / "mounted")
    assert try_remove_tree(top)
