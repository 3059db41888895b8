"""How a supervisor speaks to a running gateway: to take its sockets, to drain it, to end it.

Each gateway listens on R/gateway-PID.sock, which only root can open. One line of JSON asks, one
answers, and the connection ends when the gateway's process does:

    {"ask": "sockets"}   the listening sockets come with the answer (SCM_RIGHTS, unix(7))
    {"ask": "drain"}     a successor serves: accept nothing more, and end once all is answered
    {"ask": "stop"}      nobody follows: let what is in flight finish for a moment, and end

A later version may meet an earlier one here: the words and their meaning stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zeropull.errors import Unavailable
from zeropull.telemetry import get_logger

ANSWER_S = 2.0  # a gateway answers within it, or is taken for one that hangs
MAX_LINE_BYTES = 4096
MAX_SOCKETS = 16
_PREFIX, _SUFFIX = "gateway-", ".sock"

log = get_logger(__name__)


class HandoverServer:
    """The gateway's end. An async context manager: entered = it can be asked."""

    def __init__(
        self,
        run_dir: Path,
        sockets: Sequence[socket.socket],
        asked: dict[str, Callable[[], None]],
    ) -> None:
        """`asked` has what is called for "drain" and "stop"."""
        self._path = run_dir / f"{_PREFIX}{os.getpid()}{_SUFFIX}"
        self._sockets = sockets
        self._asked = asked
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._open: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._path.unlink(missing_ok=True)
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen()
        self._listener.setblocking(False)
        self._start(self._accept())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Connections stay open: their end tells the end of the process."""
        self._path.unlink(missing_ok=True)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._listener.close()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            connection.setblocking(False)
            self._open.add(connection)
            self._start(self._answer(connection))

    async def _answer(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        buffer = b""
        with contextlib.suppress(OSError):
            while len(buffer) < MAX_LINE_BYTES:
                data = await loop.sock_recv(connection, MAX_LINE_BYTES)
                if not data:
                    break
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._obey(connection, line)
        self._open.discard(connection)
        connection.close()

    def _obey(self, connection: socket.socket, line: bytes) -> None:
        try:
            ask = json.loads(line)["ask"]
        except (ValueError, KeyError, TypeError):
            ask = None
        log.info("asked by the supervisor", ask=ask)
        if ask == "sockets":
            answer = {"sockets": len(self._sockets)}
            numbers = [listening.fileno() for listening in self._sockets]
            socket.send_fds(connection, [json.dumps(answer).encode() + b"\n"], numbers)
        elif ask in self._asked:
            self._asked[ask]()
            connection.send(b'{"done": true}\n')
        else:
            connection.send(b'{"error": "unknown"}\n')


class RunningGateway:
    """A gateway's process as its supervisor sees it, whoever started it. Calls block."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid: int = struct.unpack("iii", credentials)[0]

    @classmethod
    def find(cls, run_dir: Path) -> list[RunningGateway]:
        """All that run with this run directory; what a dead one has left is removed."""
        found = []
        for path in sorted(run_dir.glob(f"{_PREFIX}*{_SUFFIX}")):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(ANSWER_S)
            try:
                connection.connect(str(path))
            except OSError:
                connection.close()
                path.unlink(missing_ok=True)
                continue
            found.append(cls(connection))
        return found

    def sockets(self) -> list[socket.socket]:
        """The sockets that it listens on, duplicated into this process.

        Raises:
            Unavailable: it does not answer.
        """
        try:
            self._connection.sendall(b'{"ask": "sockets"}\n')
            _, numbers, _, _ = socket.recv_fds(self._connection, MAX_LINE_BYTES, MAX_SOCKETS)
        except OSError as error:
            raise Unavailable(f"gateway {self.pid} does not hand its port over: {error}") from error
        return [socket.socket(fileno=number) for number in numbers]

    def drain(self) -> None:
        """A successor serves. Returns when it accepts nothing more; one that hangs or is gone is
        no error."""
        self._ask("drain")

    def stop(self, patience_s: float) -> None:
        """Returns when it has ended, and kills it after `patience_s`."""
        self._ask("stop")
        if not self._has_ended(patience_s):
            log.error("gateway killed, it did not stop", pid=self.pid, seconds=patience_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._has_ended(ANSWER_S)
        self.close()

    def close(self) -> None:
        self._connection.close()

    def _ask(self, word: str) -> None:
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps({"ask": word}).encode() + b"\n")
            self._connection.recv(MAX_LINE_BYTES)

    def _has_ended(self, patience_s: float) -> bool:
        self._connection.settimeout(patience_s)
        try:
            while self._connection.recv(MAX_LINE_BYTES):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True


def stop_gateways(run_dir: Path, patience_s: float) -> None:
    """End every gateway of this run directory, also those of earlier supervisors."""
    for gateway in RunningGateway.find(run_dir):
        gateway.stop(patience_s)
