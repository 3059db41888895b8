from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zeropull.errors import Unavailable
from zeropull.linux.files import (
    EVERYBODY_READS,
    copy_file,
    cut_front,
    open_beneath,
    replace_file,
    sync_folder,
)


def test_the_content_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    replace_file(path, b"a long first version")
    replace_file(path, "zweite, größer")
    assert path.read_text(encoding="utf-8") == "zweite, größer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_readable_by_its_owner_only_unless_told_otherwise(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        replace_file(tmp_path / "secret", b"")
        replace_file(tmp_path / "public", b"", mode=EVERYBODY_READS)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("secret", "public")]
    assert modes == [0o600, 0o644]


def test_what_a_killed_writer_left_is_used_and_gone(tmp_path: Path) -> None:
    left = tmp_path / ".state.tmp"
    left.write_bytes(b"half of what was to be written, and more than what comes now")
    left.chmod(0o644)
    replace_file(tmp_path / "state", b"whole")
    assert (tmp_path / "state").read_bytes() == b"whole"
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o600
    assert not left.exists()


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir()  # rename cannot put a file in its place
    with pytest.raises(IsADirectoryError):
        replace_file(path, b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".state.tmp").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        replace_file(tmp_path / "state", b"new")
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("is_durable", [True, False])
def test_writers_at_the_same_time_leave_one_whole_version(tmp_path: Path, is_durable: bool) -> None:
    path = tmp_path / "state"
    versions = [bytes([letter]) * 50_000 for letter in b"abcd"]
    seen: set[bytes] = set()

    def write(content: bytes) -> None:
        for _ in range(30):
            replace_file(path, content, is_durable=is_durable)
            seen.add(path.read_bytes())

    threads = [threading.Thread(target=write, args=[each]) for each in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= set(versions)
    assert list(tmp_path.iterdir()) == [path]


def test_only_a_folder_can_be_synced_as_one(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_folder(tmp_path / "file")


def test_a_copy_has_the_same_bytes(tmp_path: Path) -> None:
    content = os.urandom(5 << 20)
    (tmp_path / "source").write_bytes(content)
    copy_file(tmp_path / "source", tmp_path / "target", None)
    assert (tmp_path / "target").read_bytes() == content


def test_a_copy_replaces_nothing(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        copy_file(tmp_path / "source", tmp_path / "target", None)
    assert (tmp_path / "target").read_text() == "target"


def test_a_stopped_copy_ends_early(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    (tmp_path / "source").write_bytes(bytes(1 << 20))
    with pytest.raises(Unavailable, match="stopped"):
        copy_file(tmp_path / "source", tmp_path / "target", stop)
    assert (tmp_path / "target").stat().st_size == 0


def test_a_file_beneath_a_folder_is_opened_and_nothing_that_leads_out_of_it(
    tmp_path: Path,
) -> None:
    inside = tmp_path / "bucket" / "a"
    inside.mkdir(parents=True)
    (inside / "model").write_bytes(b"weights")
    (inside / "link").symlink_to("/etc/passwd")
    (tmp_path / "bucket" / "linked").symlink_to("a")
    folder = os.open(tmp_path / "bucket", os.O_PATH | os.O_DIRECTORY)
    try:
        descriptor = open_beneath(folder, "a/model", os.O_RDONLY)
        with os.fdopen(descriptor, "rb") as file:
            assert file.read() == b"weights"
        for leads_out in ("../outside", "/etc/passwd", "a/link", "linked/model"):
            with pytest.raises(OSError, match=r"symbolic links|cross-device"):
                open_beneath(folder, leads_out, os.O_RDONLY)
        with pytest.raises(ValueError, match="NUL"):
            open_beneath(folder, "a/model\0x", os.O_RDONLY)
    finally:
        os.close(folder)


def test_the_front_of_a_file_is_cut_or_the_file_is_left_as_it_was(tmp_path: Path) -> None:
    content = os.urandom(4 * 4096)
    (tmp_path / "log").write_bytes(content)
    descriptor = os.open(tmp_path / "log", os.O_RDWR)
    try:
        is_cut = cut_front(descriptor, 2 * 4096)
    finally:
        os.close(descriptor)
    assert (tmp_path / "log").read_bytes() == (content[2 * 4096 :] if is_cut else content)


_LONG_WAY = "a/../" * 30 + "a/model"
_RENAMES = """
import os, sys
os.chdir(sys.argv[1])
print(flush=True)
while True:
    os.rename("elsewhere", "there")
    os.rename("there", "elsewhere")
"""


def test_renames_elsewhere_on_the_machine_keep_nothing_from_being_opened(tmp_path: Path) -> None:
    (tmp_path / "bucket" / "a").mkdir(parents=True)
    (tmp_path / "bucket" / "a" / "model").touch()
    (tmp_path / "elsewhere").touch()
    folder = os.open(tmp_path / "bucket", os.O_PATH | os.O_DIRECTORY)
    renaming = subprocess.Popen(
        [sys.executable, "-c", _RENAMES, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert renaming.stdout is not None
    try:
        renaming.stdout.readline()
        for _ in range(4000):
            os.close(open_beneath(folder, _LONG_WAY, os.O_RDONLY, follow_links=True))
    finally:
        renaming.kill()
        renaming.communicate()
        os.close(folder)
