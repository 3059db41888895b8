"""Sockets of the client port: bound, inherited from systemd, compared with what is wanted."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from zeropull.daemons import listening


def test_a_free_port_is_the_same_for_every_address_of_the_host() -> None:
    sockets = listening.bind_sockets("127.0.0.1", 0)
    try:
        host, port = listening.address_of(sockets)
        assert (host, port != 0) == ("127.0.0.1", True)
        with socket.create_connection((host, port), timeout=5):
            pass
        assert listening.listen_on(sockets, "127.0.0.1", port)
        assert listening.listen_on(sockets, "127.0.0.1", 0)
        assert not listening.listen_on(sockets, "127.0.0.1", port + 1)
        assert not listening.listen_on(sockets, "127.0.0.2", port)
    finally:
        listening.close_all(sockets)


def test_a_taken_port_is_an_error_and_leaves_no_socket_open() -> None:
    sockets = listening.bind_sockets("127.0.0.1", 0)
    try:
        with pytest.raises(OSError, match="in use"):
            listening.bind_sockets(*listening.address_of(sockets))
    finally:
        listening.close_all(sockets)


def test_sockets_of_systemd_are_for_one_process_only() -> None:
    assert listening.sockets_from_systemd({}, 7) == []
    assert listening.sockets_from_systemd({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, 7) == []


def test_a_process_gets_the_socket_that_systemd_would_pass() -> None:
    script = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3)\n"
        "from zeropull.daemons import listening\n"
        "found = listening.sockets_from_systemd({'LISTEN_PID': '1', 'LISTEN_FDS': '1'}, 1)\n"
        "print(*listening.address_of(found), os.get_inheritable(3))\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as made:
        said = subprocess.run(
            [sys.executable, "-c", script, str(made.fileno())],
            pass_fds=[made.fileno()], capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert said.split() == ["127.0.0.1", str(made.getsockname()[1]), "False"]
