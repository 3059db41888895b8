"""Logs of a copy stay bounded while the container goes on writing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zeropull.nodeagent.containers.logs import (
    last_lines,
    log_file,
    make_log_file,
    prune,
    rotate,
    rotate_daemons,
)


@pytest.fixture(params=["temporary", "tmpfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The latter cannot cut off the front of a file, and may be what the former is on, too."""
    if request.param == "temporary":
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        yield Path(made)


def test_rotation_loses_no_line_and_keeps_the_writers_file(folder: Path) -> None:
    path = log_file(folder, "copy-1")
    make_log_file(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    lines = [f"line {number:06d}\n".encode() for number in range(2000)]
    for line in lines:
        os.write(descriptor, line)
    assert rotate(path, max_bytes=8192)
    os.write(descriptor, b"the last\n")
    os.close(descriptor)
    rotated = path.with_name("current.log.1").read_bytes()
    assert rotated + path.read_bytes() == b"".join(lines) + b"the last\n"
    assert path.stat().st_size < 8192


def test_only_the_newest_files_are_kept(tmp_path: Path) -> None:
    path = log_file(tmp_path, "copy-1")
    make_log_file(path)
    for number in range(5):
        path.write_bytes(path.read_bytes() + f"{number}".encode() * 20_000)
        assert rotate(path, max_bytes=8192, kept=3)
    names = sorted(each.name for each in path.parent.iterdir())
    assert names == ["current.log", "current.log.1", "current.log.2"]


def test_a_small_log_is_left_alone(tmp_path: Path) -> None:
    path = log_file(tmp_path, "copy-1")
    assert not rotate(path)
    make_log_file(path)
    path.write_text("one\n")
    assert not rotate(path)


def test_the_last_words_are_bounded_and_printable(tmp_path: Path) -> None:
    path = log_file(tmp_path, "copy-1")
    assert last_lines(path) == ""
    make_log_file(path)
    path.write_bytes(b"x" * 5000 + b"\n\x1b[31mbad\n\nend\n")
    assert last_lines(path, lines=2) == " [31mbad\nend"


def test_of_copies_that_are_gone_the_newest_logs_stay(tmp_path: Path) -> None:
    for number in range(6):
        path = log_file(tmp_path, f"copy-{number}")
        make_log_file(path)
        path.write_bytes(b"x" * 1000)
        os.utime(path, (number, number))
    (tmp_path / "agent.log").write_text("a daemon's")
    assert sorted(prune(tmp_path, {"copy-0"}, kept=3)) == ["copy-1", "copy-2"]
    assert sorted(prune(tmp_path, {"copy-0"}, max_bytes=2500)) == ["copy-3"]
    left = sorted(each.name for each in tmp_path.iterdir())
    assert left == ["agent.log", "copy-0", "copy-4", "copy-5"]


def test_a_daemons_log_is_rotated_while_the_daemon_writes_it(folder: Path) -> None:
    path = folder / "agent.log"
    with path.open("ab", buffering=0) as daemon:
        for number in range(4000):
            daemon.write(b"line %06d\n" % number)
            if number % 500 == 499:
                rotate_daemons(folder, max_bytes=8192)
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert set(files) == {"agent.log", "agent.log.1", "agent.log.2"}
    newest = folder.joinpath("agent.log.1").read_bytes() + path.read_bytes()
    assert newest.endswith(b"line 003998\nline 003999\n")
    assert sum(files.values()) < 4000 * len("line 000000\n")
