"""A child process and its parent: streams in both directions, and the end of either."""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.plugin import wait_until
from zeropull.childprocess import ChildProcess, OtherProcessGone

CONTENT = random.Random(7).randbytes(5_000_000)
WORKER = "zeropull.inflating.worker"
GZIP = ["1f8b0800"]


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


def test_bytes_come_back_and_nothing_is_left() -> None:
    before = {path.name for path in Path("/proc/self/fd").iterdir()}
    child = ChildProcess(WORKER, GZIP, work="testing")
    child.input.write(gzip.compress(CONTENT, 1)[:3_000_000])
    child.input.write(gzip.compress(CONTENT, 1)[3_000_000:])
    child.input.end()
    assert b"".join(bytes(part) for part in child.output) == CONTENT
    child.close()
    assert state_of(child.pid) == "X"
    del child  # and with it the memory, which holds a descriptor
    assert {path.name for path in Path("/proc/self/fd").iterdir()} <= before


def test_a_child_that_dies_is_gone_for_writer_reader_and_messages() -> None:
    child = ChildProcess(WORKER, GZIP, work="testing")
    try:
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(OtherProcessGone):
            child.output.read()
        with pytest.raises(OtherProcessGone):
            child.messages.receive()
        with pytest.raises(OtherProcessGone):
            while True:
                child.input.write(bytes(1 << 20))
        assert str(child.gone()) == "the process for testing ended with status -9"
    finally:
        child.close()


def test_a_child_that_is_killed_here_was_stopped() -> None:
    child = ChildProcess(WORKER, GZIP, work="testing")
    child.kill()
    with pytest.raises(OtherProcessGone):
        child.output.read()
    assert str(child.gone()) == "testing was stopped"
    child.close()


def test_what_it_said_arrives_although_it_left_parts_unread() -> None:
    child = ChildProcess(WORKER, GZIP, work="testing")
    try:
        child.input.write(b"\x1f\x8b\x08no gzip at all" * 100_000)
        with pytest.raises(OtherProcessGone):
            child.output.read()
        child.input.write(bytes(600_000))
        os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: state_of(child.pid) == "Z", lambda: None)
        assert child.messages.receive() != b""
        with pytest.raises(OtherProcessGone):
            child.messages.receive()
    finally:
        child.close()


PARENT = """
import time
from zeropull.childprocess import ChildProcess
print(ChildProcess("zeropull.inflating.worker", ["1f8b0800"], work="testing").pid, flush=True)
time.sleep(60)  # until it is killed
"""


def test_the_child_ends_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: state_of(pid) in "ZX", lambda: None)
