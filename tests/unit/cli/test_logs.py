"""Logs are followed over rotations, restarts and copies that come and go."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from zeropull.admin.messages import LogFolder
from zeropull.cli.logs import LOOKS_AT_ODD_FILES, CopyLog, follow_logs
from zeropull.errors import Unavailable
from zeropull.nodeagent.containers.logs import log_file, make_log_file, rotate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = log_file(tmp_path, "copy-1")
    make_log_file(found)
    return found


def write(path: Path, first: int, count: int) -> list[bytes]:
    lines = [f"line {number:06d} of the log".encode() for number in range(first, first + count)]
    with path.open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))
    return lines


def test_every_line_comes_once_over_rotations(path: Path) -> None:
    log, seen, written = CopyLog(path.parent), [], []
    for turn in range(12):
        written += write(path, turn * 1000, 700)
        if turn % 3 == 0:
            seen += log.new_lines()
        written += write(path, turn * 1000 + 700, 300)
        assert rotate(path, max_bytes=8192) is True
        if turn % 2 == 0:
            seen += log.new_lines()
    assert seen + log.new_lines() == written


def test_two_rotations_between_two_looks_lose_nothing(path: Path) -> None:
    log = CopyLog(path.parent)
    written = write(path, 0, 500)
    seen = log.new_lines()
    for turn in (1, 2):
        written += write(path, turn * 1000, 1000)
        assert rotate(path, max_bytes=8192)
    written += write(path, 5000, 3)
    assert seen + log.new_lines() == written


def test_what_is_there_at_first_comes_oldest_first(path: Path) -> None:
    written = []
    for turn in range(2):
        written += write(path, turn * 1000, 1000)
        rotate(path, max_bytes=8192)
    written += write(path, 5000, 10)
    assert CopyLog(path.parent).new_lines() == written


def test_a_part_that_is_copied_but_not_cut_off_yet_does_not_come_twice(path: Path) -> None:
    log = CopyLog(path.parent)
    written = write(path, 0, 1000)
    assert log.new_lines() == written
    content = path.read_bytes()
    rotated = path.with_name("current.log.1")
    rotated.write_bytes(content[:8192])
    assert log.new_lines() == []
    path.write_bytes(content[8192:])
    os.utime(rotated, ns=(1, 1))  # as it was written: before
    written = write(path, 1000, 5)
    assert log.new_lines() == written


def test_a_line_comes_when_its_end_has_come(path: Path) -> None:
    log = CopyLog(path.parent)
    path.write_bytes(b"begun")
    assert log.new_lines() == []
    with path.open("ab") as file:
        file.write(b" and ended\nnext")
    assert log.new_lines() == [b"begun and ended"]
    assert log.new_lines(last=True) == [b"next"]


def test_a_log_that_was_truncated_is_read_from_its_new_beginning(path: Path) -> None:
    log = CopyLog(path.parent)
    write(path, 0, 100)
    log.new_lines()
    path.write_bytes(b"anew\n")
    assert [line for _ in range(LOOKS_AT_ODD_FILES) for line in log.new_lines()] == [b"anew"]


def test_a_log_that_is_gone_is_no_error(path: Path) -> None:
    log = CopyLog(path.parent)
    path.unlink()
    path.parent.rmdir()
    assert log.new_lines() == []


class Enough(Exception):
    """Ends a test's endless look."""


def test_copies_that_come_are_followed_too_and_an_absent_control_plane_is_waited_for(
    tmp_path: Path,
) -> None:
    """`copies` is asked four times: one copy, nobody there, two copies, the second alone."""
    answers: list[tuple[str, ...] | None] = [("one",), None, ("one", "two"), ("two",)]
    asked = 0

    def copies() -> list[LogFolder]:
        nonlocal asked
        if asked == len(answers):
            raise Enough
        names, number = answers[asked], asked
        asked += 1
        if names is None:
            raise Unavailable("it starts again")
        for name in names:
            path = log_file(tmp_path, name)
            make_log_file(path)
            with path.open("a") as file:
                file.write(f"said {number}\n")
        return [LogFolder(name, "i-1", "main", str(tmp_path / name)) for name in names]

    out = io.StringIO()
    with pytest.raises(Enough):
        follow_logs(copies, out, follow=True, poll_s=0.0, refresh_s=0.0)
    assert out.getvalue().splitlines() == [
        "one  said 0", "one  said 2", "two  said 2", "two  said 3",
    ]  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("out", "shown"),
    [(Terminal(), r"one  \x1b[2Jgone\x9b1m\ta\r"), (io.StringIO(), "one  \x1b[2Jgone\x9b1m\ta\r")],
)
def test_a_terminal_gets_no_control_characters_of_containers_and_a_pipe_all(
    tmp_path: Path, out: io.StringIO, shown: str
) -> None:
    path = log_file(tmp_path, "one")
    make_log_file(path)
    path.write_bytes("\x1b[2Jgone\x9b1m\ta\r\n".encode())
    folder = LogFolder("one", "i-1", "main", str(tmp_path / "one"))
    follow_logs(lambda: [folder], out, follow=False)
    assert out.getvalue() == shown.replace(r"\t", "\t") + "\n"


def test_without_a_control_plane_from_the_start_it_says_so() -> None:
    def nobody() -> list[LogFolder]:
        raise Unavailable("is `zeropull serve` running?")

    with pytest.raises(Unavailable):
        follow_logs(nobody, io.StringIO(), follow=True)
