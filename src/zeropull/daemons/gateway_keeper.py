"""Keeps one gateway serving, and a second process ready to follow it at once.

The second one has imported and read everything, and waits: when the first dies, it listens within
milliseconds. Both have inherited the listening sockets, so that what nobody has accepted yet waits.
A gateway outlives its keeper: it goes on serving until a later supervisor's gateway follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from zeropull.backoff import Backoff
from zeropull.telemetry import get_logger

RESTART = Backoff(first_s=0.2, limit_s=10.0)
LONG_RUN_S = 5.0  # the second in a row that lived shorter is followed only after a pause
# What the two say to each other over their channel.
ACTIVATE = b"go\n"
STOP = b"stop\n"
READY = b"ready\n"
LEAVING = b"leaving\n"

log = get_logger(__name__)


class GatewayProcess:
    """One process. `ready` is done when it serves, `leaving` when another is to follow it while it
    answers what it has, and `ended` when it has ended."""

    def __init__(self, settings_file: Path, sockets: Sequence[socket.socket]) -> None:
        numbers = [listening.fileno() for listening in sockets]
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        # No asyncio.subprocess: that would kill the process when the loop is closed.
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "zeropull.daemons.gateway"),
                    *("--settings", str(settings_file), "--keeper-fd", str(theirs.fileno())),
                    *("--listen-fds", ",".join(map(str, numbers))),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *numbers],
                # Ctrl-C in a terminal reaches the whole group: only the supervisor is to see it.
                start_new_session=True,
            )
        loop = asyncio.get_running_loop()
        self.pid = self._process.pid
        self.ended: asyncio.Future[None] = loop.create_future()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.leaving: asyncio.Future[None] = loop.create_future()
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(self._pidfd, self._on_end)
        loop.add_reader(self._channel, self._on_said)

    @property
    def code(self) -> int | None:
        """The exit status; minus the signal's number when one ended it."""
        return self._process.returncode

    def activate(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(ACTIVATE)

    def kill(self) -> None:
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def let_go(self) -> None:
        """One that waits ends; one that serves goes on alone."""
        if self.ended.done():
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._channel)
        self._channel.close()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        # It is init's child from our end on; Popen would warn that it still runs.
        self._process.returncode = self._process.poll() or 0

    async def end(self, patience_s: float) -> None:
        """Have it stop, and kill it after `patience_s`."""
        with contextlib.suppress(OSError):
            self._channel.send(STOP)
        try:
            async with asyncio.timeout(patience_s):
                await asyncio.shield(self.ended)
        except TimeoutError:
            log.error("process killed, it did not stop", name="gateway", seconds=patience_s)
            self.kill()
            await self.ended

    def _on_said(self) -> None:
        try:
            said = self._channel.recv(64)
        except OSError:
            said = b""
        if READY in said and not self.ready.done():
            self.ready.set_result(None)
        if LEAVING in said and not self.leaving.done():
            self.leaving.set_result(None)
        if not said:
            asyncio.get_running_loop().remove_reader(self._channel)

    def _on_end(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        loop.remove_reader(self._channel)
        self._channel.close()
        os.close(self._pidfd)
        self._process.wait()
        self.ended.set_result(None)


class GatewayKeeper:
    """`serving` is set once the first gateway answers."""

    def __init__(
        self,
        settings_file: Path,
        sockets: Sequence[socket.socket],
        mend: Callable[[], None] = lambda: None,
    ) -> None:
        """`mend` is called before each start: what a process died of may be its settings file."""
        self._settings_file = settings_file
        self._sockets = sockets
        self._mend = mend
        self._active: GatewayProcess | None = None
        self._standby: GatewayProcess | None = None
        self._leaving: set[GatewayProcess] = set()
        self.serving = asyncio.Event()

    def let_go(self) -> None:
        """After `run`: the gateway serves on alone, and no other follows it."""
        if self._standby is not None:
            self._standby.kill()  # it holds the sockets, and nothing that could get lost
        for process in self._processes():
            process.let_go()

    async def stop(self, patience_s: float) -> None:
        """After `run`: end all."""
        await asyncio.gather(*(process.end(patience_s) for process in self._processes()))

    def _processes(self) -> list[GatewayProcess]:
        found = [self._active, self._standby, *self._leaving]
        return [process for process in found if process is not None]

    async def run(self) -> None:
        """Keep a gateway serving until cancelled; then call `let_go` or `stop`."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            active = self._take_standby()
            self._active = active
            active.activate()
            began_s = loop.time()
            await asyncio.wait({active.ready, active.ended}, return_when=asyncio.FIRST_COMPLETED)
            if active.ready.done():
                self.serving.set()
            await self._keep_standby_beside(active)
            if not active.ended.done():
                self._leaving = {p for p in self._leaving if not p.ended.done()} | {active}
                failures = 0
                continue
            lived_s = loop.time() - began_s
            failures = failures + 1 if lived_s < LONG_RUN_S else 0
            pause_s = RESTART.after(failures - 1)
            log.error("process died", name="gateway", code=active.code, restart_in_s=pause_s)
            await asyncio.sleep(pause_s)

    def _take_standby(self) -> GatewayProcess:
        standby, self._standby = self._standby, None
        if standby is None or standby.ended.done():
            return self._start()
        return standby

    def _start(self) -> GatewayProcess:
        self._mend()
        return GatewayProcess(self._settings_file, self._sockets)

    async def _keep_standby_beside(self, active: GatewayProcess) -> None:
        """Returns when the active one has ended or leaves."""
        failures = 0
        over = {active.ended, active.leaving}
        while not any(end.done() for end in over):
            if self._standby is None or self._standby.ended.done():
                if failures:
                    await asyncio.wait(
                        over, timeout=RESTART.after(failures), return_when=asyncio.FIRST_COMPLETED
                    )
                    if any(end.done() for end in over):
                        return
                self._standby = self._start()
                failures += 1
            await asyncio.wait({*over, self._standby.ended}, return_when=asyncio.FIRST_COMPLETED)
