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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zeropull.backoff import Backoff
from zeropull.errors import Unavailable
from zeropull.telemetry import get_logger

# The spaces are room for the command lines of the daemons, which are written over this one.
COMMAND = (sys.executable, "-m", "zeropull.daemons.spawner", " " * 1000)
READY, STARTED = b"ready", b"started"
_ANSWER_S = 10.0
_AGAIN = Backoff(first_s=0.5, limit_s=60.0)  # one that dies at its start costs most of a second
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
    """Owned by the provider: `start` once, `close` at the end. Used by several threads.

    A spawner that has died, or does not answer, is started again: by the next `spawn`, or by
    `revive`, which somebody calls now and then.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._is_wanted = False
        self._deaths = 0  # in a row, before the first daemon it has started
        self._not_before_s = 0.0

    def start(self) -> None:
        """Begin; returns before it is ready."""
        with self._lock:
            self._is_wanted = True
            self._begin()

    def close(self) -> None:
        """The spawner ends, and what it has started runs on."""
        with self._lock:
            self._is_wanted = False
            process = self._let_go()
        if process is not None:
            try:
                process.wait(_ANSWER_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def revive(self) -> None:
        """Start it again if it has died; returns at once."""
        with self._lock:
            self._revive()

    @property
    def is_ready(self) -> bool:
        """A daemon that is asked for now is forked."""
        with self._lock:
            self._revive()
            return self._socket is not None and self._ready(self._socket)

    @property
    def pid(self) -> int | None:
        """Process id of the spawner that runs now."""
        with self._lock:
            return self._process.pid if self._process is not None else None

    def spawn(self, spawn: Spawn) -> bool:
        """Start the daemon; False when the caller has to. Its pid file is written by then.

        Raises:
            Unavailable: it could not be moved to where it belongs.
        """
        with self._lock:
            self._revive()
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
                self._bury()
                # It may have started the daemon and died then.
                return Path(spawn.pid_file).exists()
            self._deaths = 0
        if answer != STARTED:
            raise Unavailable(f"{spawn.module} cannot be started: {answer.decode()}")
        return True

    def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        try:
            with theirs:
                # In a session of its own: Ctrl-C is for the supervisor.
                self._process = subprocess.Popen(
                    COMMAND, stdin=theirs.fileno(), env=environment, start_new_session=True
                )
        except OSError:
            ours.close()
            raise
        self._socket = ours
        self._is_ready = False

    def _revive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._bury()
        if not self._is_wanted or self._process is not None:
            return
        if self._monotonic() < self._not_before_s:
            return
        try:
            self._begin()
        except OSError as error:
            self._bury()
            log.warning("spawner cannot be started, daemons are executed", reason=str(error))
        else:
            log.info("spawner is started again")

    def _bury(self) -> None:
        """It has died, or hangs and is killed: the next one comes after a pause."""
        process = self._let_go()
        if process is not None:
            process.kill()
            process.wait()
            log.warning("spawner has ended", status=process.returncode)
        self._deaths += 1
        self._not_before_s = self._monotonic() + _AGAIN.after(self._deaths)

    def _let_go(self) -> subprocess.Popen[bytes] | None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._is_ready = False
        process, self._process = self._process, None
        return process

    def _ready(self, connection: socket.socket) -> bool:
        if not self._is_ready:
            try:
                self._is_ready = connection.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT) == READY
            except OSError:  # not yet, or dead: `_revive` finds out
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
