"""The other end of `zeropull.daemons.spawner`, which starts Python daemons without their imports.

An import of the node agent takes most of a second of a core, and every launch would pay it. Whoever
has no spawner, or one that is not ready yet or does not answer, starts the daemon by itself.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zeropull.errors import Unavailable
from zeropull.telemetry import get_logger

# The spaces are room for the command lines of the daemons, which are written over this one.
COMMAND = (sys.executable, "-m", "zeropull.daemons.spawner", " " * 1000)
READY, STARTED = b"ready", b"started"
_ANSWER_S = 10.0
_ANSWER_BYTES = 4096

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Spawn:
    """One daemon: `python -m module arguments...`, inside the namespace and the cgroups."""

    module: str
    arguments: tuple[str, ...]
    netns: str
    cgroup_files: tuple[str, ...]
    pid_file: str
    log_file: str


class Spawner:
    """Owned by the provider: `start` once, `close` at the end. Used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False

    def start(self) -> None:
        """Begin; returns before it is ready."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        with theirs:
            # In a session of its own: Ctrl-C is for the supervisor.
            self._process = subprocess.Popen(
                COMMAND, stdin=theirs.fileno(), env=environment, start_new_session=True
            )
        self._socket = ours

    def close(self) -> None:
        """The spawner ends, and what it has started runs on."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
        if self._process is not None:
            try:
                self._process.wait(_ANSWER_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def is_ready(self) -> bool:
        """A daemon that is asked for now is forked."""
        with self._lock:
            return self._socket is not None and self._ready(self._socket)

    def spawn(self, spawn: Spawn) -> bool:
        """Start the daemon; False when the caller has to. Its pid file is written by then.

        Raises:
            Unavailable: it could not be moved to where it belongs.
        """
        with self._lock:
            if self._socket is None or not self._ready(self._socket):
                return False
            try:
                self._socket.settimeout(_ANSWER_S)
                self._socket.send(msgspec.json.encode(spawn))
                answer = self._socket.recv(_ANSWER_BYTES)
            except OSError as error:
                answer = b""
                log.warning("spawner does not answer", reason=str(error))
            if not answer:
                self._socket.close()
                self._socket = None
                # It may have started the daemon and died then.
                return Path(spawn.pid_file).exists()
        if answer != STARTED:
            raise Unavailable(f"{spawn.module} cannot be started: {answer.decode()}")
        return True

    def _ready(self, connection: socket.socket) -> bool:
        if not self._is_ready:
            try:
                self._is_ready = connection.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT) == READY
            except BlockingIOError:
                return False
        return self._is_ready


def spawn_of(
    command: Sequence[str], netns: str, cgroup_files: Sequence[Path], pid_file: Path, log_file: Path
) -> Spawn | None:
    """None for a command that is not one of this interpreter's modules."""
    if tuple(command[:2]) != (sys.executable, "-m"):
        return None
    return Spawn(
        module=command[2],
        arguments=tuple(command[3:]),
        netns=netns,
        cgroup_files=tuple(str(file) for file in cgroup_files),
        pid_file=str(pid_file),
        log_file=str(log_file),
    )
