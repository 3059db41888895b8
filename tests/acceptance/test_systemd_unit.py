"""The systemd unit under a real systemd: what a stop, a crash and `zeropull stop` come to."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.serving import Server, wait_until
from tests.fixtures.local_fleet import is_running
from tests.fixtures.registry import Registry
from tests.fixtures.relay import free_port
from tests.fixtures.systemd import Manager, user_manager

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
UNIT, SOCKET = PACKAGING / "zeropull.service", PACKAGING / "zeropull.socket"
MOUNTS = f"/proc/{os.getpid()}/ns/mnt"  # the manager has a mount namespace of its own


class UnitServer(Server):
    """`zeropull serve` as the unit starts it."""

    def __init__(self, folder: Path, manager: Manager) -> None:
        self.port = free_port()
        serve = {"state_dir": str(folder / "state"), "port": self.port}
        super().__init__(folder, serve=serve)
        self.manager = manager
        command = f"{sys.executable} -m zeropull.cli.main serve --config {self.config}"
        manager.install(
            UNIT,
            "[Service]\nExecStart=\n"
            f"ExecStart=/usr/bin/nsenter --mount={MOUNTS} -- {command}\n"
            f"StandardOutput=truncate:{folder}/out\nStandardError=append:{folder}/log\n",
        )

    def start(self) -> None:
        (self.folder / "out").unlink(missing_ok=True)
        self.manager.control("start", UNIT.name)
        self.connect()

    def is_alive(self) -> bool:
        return self.manager.show(UNIT.name, "ActiveState") != "failed"

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.manager.control("stop", UNIT.name)

    def main_pid(self) -> int:
        return int(self.manager.show(UNIT.name, "MainPID"))

    def is_active(self) -> bool:
        return self.manager.show(UNIT.name, "ActiveState") == "active"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UnitServer]:
    with user_manager() as manager:
        server = UnitServer(tmp_path, manager)
        try:
            server.start()
            yield server
        finally:
            server.end()
            server.cli("stop")
        assert server.left_behind() == {}
        assert server.everything() == set()


def test_containers_outlive_a_stop_and_a_crash_but_not_zeropull_stop(
    server: UnitServer, registry: Registry
) -> None:
    server.deploy("kept", f"{registry.address}/server:1")
    server.wait_served("kept")
    containers = server.container_pids("kept")
    assert len(containers) == 1
    server.end()
    assert server.manager.show(UNIT.name, "ActiveState") == "inactive"
    assert server.manager.show(UNIT.name, "Result") == "success"
    assert all(is_running(pid) for pid in containers)

    server.start()
    wait_until("it answers again", lambda: server.answers("kept"))
    assert server.container_pids("kept") == containers

    killed = server.main_pid()
    server.kill(killed)
    wait_until("systemd has started it again", lambda: server.main_pid() not in (0, killed))
    wait_until("it answers after the crash", lambda: server.answers("kept"))
    wait_until("the API answers after the crash", server.answers_api)
    assert server.container_pids("kept") == containers

    server.cli("stop")
    wait_until(
        "the unit has ended", lambda: server.manager.show(UNIT.name, "ActiveState") == "inactive"
    )
    assert server.manager.show(UNIT.name, "Result") == "success"
    assert not any(is_running(pid) for pid in containers)
    assert server.left_behind() == {}


def test_with_the_socket_unit_a_client_waits_while_nothing_runs(tmp_path: Path) -> None:
    with user_manager() as manager:
        server = UnitServer(tmp_path, manager)
        there = f"127.0.0.1:{server.port}"
        manager.install(SOCKET, f"[Socket]\nListenStream=\nListenStream={there}\n")
        manager.control("start", SOCKET.name)
        try:
            # Nothing of zeropull has run yet: the request waits in systemd's socket, and starts it.
            with urllib.request.urlopen(f"http://{there}/healthz", timeout=120) as answer:
                assert answer.status == 200
            assert server.is_active()
            server.connect()
            server.end()
            server.start()
            assert server.answers_api()
            server.cli("stop")
            wait_until("the unit has ended", lambda: not server.is_active())
            with urllib.request.urlopen(f"http://{there}/healthz", timeout=120) as answer:
                assert answer.status == 200
        finally:
            manager.control("stop", SOCKET.name)
            server.end()
            server.cli("stop")
        assert server.left_behind() == {}
        assert server.everything() == set()
