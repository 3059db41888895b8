"""`zeropull logs ENDPOINT -f` in a process of its own, while containers write, come and go."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.acceptance.serving import CPU, Server, running_server, wait_until
from tests.fixtures.registry import Registry

LINES = 12_000  # of 1000 bytes: more than one file holds


@pytest.fixture
def server(tmp_path: Path, registry: Registry) -> Iterator[Server]:
    with running_server(tmp_path) as server:
        server.deploy("wordy", f"{registry.address}/server:1", CPU)
        server.wait_served("wordy")
        yield server


@contextlib.contextmanager
def following(server: Server) -> Iterator[Path]:
    """What it has printed so far, as a file; afterwards it ended at Ctrl-C without complaint."""
    printed, complaints = server.folder / "printed", server.folder / "complaints"
    command = [sys.executable, "-m", "zeropull.cli.main", "logs", "wordy", "-f", "--config"]
    with printed.open("wb") as out, complaints.open("wb") as err:
        process = subprocess.Popen([*command, str(server.config)], stdout=out, stderr=err)
    try:
        wait_until("it prints", lambda: b"listening" in printed.read_bytes())
        yield printed
        assert process.poll() is None, complaints.read_text()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert process.returncode == 0
    assert complaints.read_text() == ""


def talk(server: Server, word: str, lines: int = 1) -> None:
    server.runtime.invoke_endpoint(
        EndpointName="wordy", Body=word.encode(), CustomAttributes=f"log={lines}"
    )


def numbers(printed: Path, word: str) -> list[int]:
    """Of the lines with that word, as they were printed."""
    mark = f" {word} "
    text = printed.read_text()
    return [int(line.split()[1]) for line in text.splitlines() if mark in line]


def test_following_a_log_shows_every_line_once_whatever_happens_to_the_container(
    server: Server,
) -> None:
    [instance_id] = server.instances("wordy")
    logs = server.folder / "state/instances" / instance_id / "logs"
    with following(server) as printed:
        talk(server, "before", 3)
        wait_until("new lines come", lambda: numbers(printed, "before") == [0, 1, 2])

        for turn in ("first", "second"):
            talk(server, turn, LINES)
            wait_until(
                "all lines of a long answer",
                partial(lambda turn: len(numbers(printed, turn)) >= LINES, turn),
            )
            wait_until(
                "the log is rotated",
                lambda: all(f.stat().st_size < 10 << 20 for f in logs.glob("*/current.log")),
            )
        assert list(logs.glob("*/current.log.2"))
        talk(server, "rotated", 2)
        wait_until("lines after the rotation", lambda: len(numbers(printed, "rotated")) >= 2)
        for turn in ("first", "second"):
            assert numbers(printed, turn) == list(range(LINES)), turn
        assert numbers(printed, "rotated") == [0, 1]

        [(shim, _)] = server.shims(instance_id).items()
        server.kill(shim)
        wait_until("another container runs", lambda: server.shims(instance_id).keys() - {shim})
        wait_until("it answers", lambda: server.answers("wordy"))
        server.kill(server.child_pid("control_plane"))
        talk(server, "replaced", 2)
        wait_until("its lines come", lambda: numbers(printed, "replaced") == [0, 1])

        server.wait_served("wordy")
        server.scale_and_wait("wordy", 2)

        def both_talk() -> bool:
            talk(server, "pair")
            copies = [
                line.split()[0] for line in printed.read_text().splitlines() if "pair" in line
            ]
            return len(set(copies)) == 2

        wait_until("the new copy is followed too", both_talk)


def test_without_following_it_prints_what_is_there_and_ends(server: Server) -> None:
    talk(server, "once", 2)
    wait_until("the lines are there", lambda: server.cli("logs", "wordy").count(" once ") == 2)
    command = [sys.executable, "-m", "zeropull.cli.main", "logs", "nobody"]
    refused = subprocess.run(
        [*command, "--config", str(server.config)], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "there is no endpoint nobody" in refused.stderr
