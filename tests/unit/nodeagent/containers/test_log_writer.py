"""The program that writes a container's log, as containerd's shim runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from zeropull.nodeagent.containers.log_writer import LogWriter, Pace
from zeropull.nodeagent.containers.logs import install_log_writer


class Shim:
    """The other ends of the program's three descriptors."""

    def __init__(self, folder: Path) -> None:
        program = install_log_writer(folder / "bin")
        (folder / "log").mkdir()
        pipes = [os.pipe() for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][0], pipes[2][1]]
        self.out, self.err, self.ready = pipes[0][1], pipes[1][1], pipes[2][0]

        def descriptors() -> None:
            moved = [os.dup2(each, 200 + number) for number, each in enumerate(theirs)]
            for number, each in enumerate(moved):
                os.dup2(each, 3 + number)
            os.closerange(6, 300)

        self.process = subprocess.Popen(
            [program, "folder", folder / "log"],
            close_fds=False,
            preexec_fn=descriptors,
            env={},
        )
        for each in theirs:
            os.close(each)

    def close(self) -> None:
        for each in (self.out, self.err):
            os.close(each)


def test_both_streams_are_written_and_the_program_ends_with_them(tmp_path: Path) -> None:
    shim = Shim(tmp_path)
    assert os.read(shim.ready, 1) == b"", "closing it says that it is ready"
    os.write(shim.out, b"out\n")
    os.write(shim.err, b"err\n")
    shim.close()
    assert shim.process.wait(10) == 0
    assert sorted((tmp_path / "log/current.log").read_text().split()) == ["err", "out"]
    os.close(shim.ready)


def test_last_words_are_written_after_sigterm(tmp_path: Path) -> None:
    shim = Shim(tmp_path)
    os.read(shim.ready, 1)
    os.write(shim.out, b"last words\n")
    os.kill(shim.process.pid, signal.SIGTERM)
    assert shim.process.wait(10) == 0
    assert (tmp_path / "log/current.log").read_text() == "last words\n"
    shim.close()
    os.close(shim.ready)


def test_a_program_that_waits_ends_at_sigterm(tmp_path: Path) -> None:
    shim = Shim(tmp_path)
    os.read(shim.ready, 1)
    os.write(shim.out, b"first\n")
    log = tmp_path / "log/current.log"
    deadline_s = time.monotonic() + 10
    while not (log.exists() and log.read_text() == "first\n"):
        assert time.monotonic() < deadline_s
    os.kill(shim.process.pid, signal.SIGTERM)
    assert shim.process.wait(10) == 0
    shim.close()
    os.close(shim.ready)


def test_files_never_exceed_their_size_and_their_number(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path), max_bytes=100, kept=3)
    for number in range(50):
        writer.write(memoryview(b"%02d" % number * 11))
        sizes = [path.stat().st_size for path in tmp_path.iterdir()]
        assert len(sizes) <= 3
        assert max(sizes) <= 100
    names = ["current.log.2", "current.log.1", "current.log"]
    kept = b"".join((tmp_path / name).read_bytes() for name in names)
    assert kept == b"".join(b"%02d" % number * 11 for number in range(50))[-len(kept) :]


def test_a_writer_goes_on_with_the_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "current.log").write_bytes(b"before\n")
    LogWriter(str(tmp_path)).write(memoryview(b"after\n"))
    assert (tmp_path / "current.log").read_bytes() == b"before\nafter\n"


def test_what_the_disk_does_not_take_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "current.log").symlink_to("/dev/full")
    LogWriter(str(tmp_path)).write(memoryview(b"lost"))
    writer = LogWriter(str(tmp_path / "no" / "such"))
    writer.write(memoryview(b"lost"))


def test_the_pace_lets_a_second_pass_at_once_and_then_holds_back() -> None:
    pace = Pace(100.0, now_s=0.0)
    assert pace.wait_s(50, now_s=10.0) == 0.0
    assert pace.wait_s(50, now_s=10.0) == 0.0
    assert pace.wait_s(100, now_s=10.0) == pytest.approx(1.0)
    assert pace.wait_s(0, now_s=11.0) == pytest.approx(0.0)


def test_the_program_is_small(tmp_path: Path) -> None:
    shim = Shim(tmp_path)
    os.read(shim.ready, 1)
    status = Path(f"/proc/{shim.process.pid}/status").read_text()
    resident_kb = int(status.partition("VmRSS:")[2].split()[0])
    os.kill(shim.process.pid, signal.SIGTERM)
    shim.process.wait(10)
    shim.close()
    os.close(shim.ready)
    assert resident_kb < 20_000, "each container has one"
