"""`zeropull serve`: starts the control plane and the gateway and keeps them alive.

SIGINT tears everything down, SIGTERM detaches: containers keep running, and the next start adopts
them. The gateway goes on serving them, until the next start's gateway serves the same sockets. The
control plane gets SIGTERM when the supervisor is killed, so that it detaches with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from zeropull.admin.client import AdminClient
from zeropull.backoff import Backoff
from zeropull.daemons import listening
from zeropull.daemons.gateway_keeper import GatewayKeeper
from zeropull.daemons.handover import RunningGateway, stop_gateways
from zeropull.daemons.settings_file import write_settings
from zeropull.errors import Conflict, Unavailable
from zeropull.linux.files import replace_file
from zeropull.linux.processes import die_with_parent
from zeropull.resources.settings import Settings
from zeropull.telemetry import get_logger

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 45.0  # above the gateway's grace for requests in flight
TEARDOWN_TIMEOUT_S = 120.0
PORT_TIMEOUT_S = 5.0
RESTART = Backoff(first_s=0.2, limit_s=10.0)
LONG_RUN_S = 60.0  # a child that lived this long starts its backoff anew
REFUSAL_FILE = "refusal"
_TOKEN = re.compile(rb"[0-9a-f]{64}")

log = get_logger(__name__)


class Supervisor:
    """One `zeropull serve`. `run` returns when a signal has ended it."""

    def __init__(self, settings: Settings, announce: Callable[[str], None]) -> None:
        """`announce` is called once, with the client address, when everything answers."""
        self._settings = with_token(settings)
        self._announce = announce
        self._signal: signal.Signals | None = None
        self._stop = asyncio.Event()

    async def run(self) -> None:
        run_dir = self._settings.run_dir
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _only_one(run_dir / "supervisor.pid"):
            self._handle_signals()
            earlier = RunningGateway.find(run_dir)
            sockets = await _client_port(self._settings, earlier)
            self._settings = _listening_there(self._settings, sockets)
            _make_private_folders(self._settings)
            (run_dir / REFUSAL_FILE).unlink(missing_ok=True)
            write_settings(self._settings)
            async with asyncio.TaskGroup() as tasks:
                control = tasks.create_task(self._keep("control_plane"))
                source = self._source(tasks)
                if await self._answers():
                    # The operator's word is for this state only, not for one that is lost later.
                    self._settings = replace(self._settings, fresh_state=False)
                    self._mend_settings()
                    keeper = GatewayKeeper(
                        self._settings.settings_file, sockets, self._mend_settings
                    )
                    gateway = tasks.create_task(keeper.run())
                    follower = tasks.create_task(self._follow(keeper, earlier))
                    await self._stop.wait()
                    follower.cancel()
                    gateway.cancel()
                    await asyncio.wait({gateway})
                    if self._signal is signal.SIGINT:
                        await keeper.stop(STOP_TIMEOUT_S)
                    else:
                        keeper.let_go()
                if self._signal is signal.SIGINT:
                    await asyncio.to_thread(stop_gateways, run_dir, STOP_TIMEOUT_S)
                is_empty = await self._tear_down_if_asked()
                control.cancel()
                if source is not None:
                    source.cancel()
            if self._signal is signal.SIGINT and not is_empty:
                is_empty = await self._tear_down_alone()
        if is_empty:
            shutil.rmtree(run_dir, ignore_errors=True)

    def _source(self, tasks: asyncio.TaskGroup) -> asyncio.Task[None] | None:
        """What serves image caches to nodes, where they come over the network."""
        if self._settings.fleet.delivery != "network":
            return None
        return tasks.create_task(self._keep("source"))

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled, number)

    def _signalled(self, number: signal.Signals) -> None:
        if self._signal is None:
            log.info("stopping", signal=number.name)
            self._signal = number
        self._stop.set()

    async def _keep(self, name: str) -> None:
        """Run the child until cancelled; start it again, with backoff, when it ends by itself."""
        deaths = 0
        loop = asyncio.get_running_loop()
        while True:
            if deaths:
                self._mend_settings()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"zeropull.daemons.{name}",
                "--settings",
                str(self._settings.settings_file),
                stdin=asyncio.subprocess.DEVNULL,
                # Ctrl-C in a terminal reaches the whole group: only the supervisor is to see it.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            began_s = loop.time()
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                await asyncio.shield(_end(process, name))
                raise
            deaths = 1 if loop.time() - began_s >= LONG_RUN_S else deaths + 1
            delay_s = RESTART.after(deaths)
            log.error("process died", name=name, code=code, restart_in_s=delay_s)
            await asyncio.sleep(delay_s)

    def _mend_settings(self) -> None:
        """Write the settings anew: the child may have died because it could not read them."""
        try:
            write_settings(self._settings)
        except OSError as error:
            log.error("settings not written", error=str(error))

    async def _answers(self) -> bool:
        """Wait until the control plane answers; False when a signal came first."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_TIMEOUT_S
        while not self._stop.is_set():
            try:
                await asyncio.to_thread(AdminClient(self._settings, timeout_s=5.0).status)
                return True
            except Unavailable:
                self._raise_refusal()
                if loop.time() > deadline:
                    raise
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await self._stop.wait()
        return False

    def _raise_refusal(self) -> None:
        """Raise the reason that the control plane wrote down: it cannot serve, however often it is
        started."""
        with contextlib.suppress(FileNotFoundError):
            path = self._settings.run_dir / REFUSAL_FILE
            raise Conflict(path.read_text(encoding="utf-8", errors="replace"))

    async def _follow(self, keeper: GatewayKeeper, earlier: list[RunningGateway]) -> None:
        """Once the new gateway serves, earlier ones accept nothing more: then say where it is."""
        await keeper.serving.wait()
        for gateway in earlier:
            await asyncio.to_thread(gateway.drain)
        host, port = self._settings.serve.host, self._settings.serve.port
        self._announce(f"{host}:{port}")

    async def _tear_down_if_asked(self) -> bool:
        """True when nothing runs any more: then the run directory can go. An instance that is left
        has its sockets and mounts there."""
        if self._signal is not signal.SIGINT:
            return False
        try:
            admin = AdminClient(self._settings, timeout_s=TEARDOWN_TIMEOUT_S)
            await asyncio.to_thread(admin.tear_down)
        except Unavailable as error:
            log.warning("teardown failed, another process tries", reason=error.reason)
            return False
        return True

    async def _tear_down_alone(self) -> bool:
        """After the control plane's end: it may have been down when Ctrl-C came."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "zeropull.daemons.control_plane",
            "--settings",
            str(self._settings.settings_file),
            "--teardown",
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        code = await process.wait()
        if code != 0:
            log.error("teardown failed, `zeropull stop` tries again", code=code)
        return code == 0


def tear_down_without_supervisor(settings: Settings) -> None:
    """End every instance that a crash has left, and remove R as the end of `run` does.

    Raises:
        Conflict: a supervisor has started meanwhile.
        Unavailable: something cannot be ended yet.
    """
    settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _only_one(settings.run_dir / "supervisor.pid"):
        write_settings(with_token(settings))
        stop_gateways(settings.run_dir, STOP_TIMEOUT_S)
        # Only here: `zeropull serve` itself never loads what its children do.
        from zeropull.daemons import control_plane

        if control_plane.main(["--settings", str(settings.settings_file), "--teardown"]) != 0:
            # What is left of an instance has its sockets and mounts in R, so that R stays.
            raise Unavailable(
                "not everything could be ended: the log says what is left; run `zeropull stop` "
                "again"
            )
        shutil.rmtree(settings.run_dir, ignore_errors=True)


def with_token(settings: Settings) -> Settings:
    """The settings with the gateway's token, which is kept in S/gateway.token.

    A file that is empty (the machine lost power once) or damaged is made anew. Processes
    with the old token are started again with the new one.
    """
    path = settings.state_dir / "gateway.token"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        kept = path.read_bytes()
    except FileNotFoundError:
        kept = b""
    if _TOKEN.fullmatch(kept):
        return replace(settings, gateway_token=kept.decode())
    if kept:
        log.warning("gateway token was damaged and is made anew", path=str(path))
    token = secrets.token_hex(32)
    try:
        replace_file(path, token)
    except OSError as error:  # a full disk: the token is good for this run
        log.error("gateway token not kept", path=str(path), error=str(error))
    return replace(settings, gateway_token=token)


async def _client_port(settings: Settings, earlier: list[RunningGateway]) -> list[socket.socket]:
    """The sockets of the client port: systemd's, an earlier gateway's, or new ones.

    Raises:
        Conflict: somebody else listens there; one that goes gets some time for it.
    """
    host, port = settings.serve.host, settings.serve.port
    if passed := listening.sockets_from_systemd(os.environ, os.getpid()):
        return passed
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PORT_TIMEOUT_S
    try:
        for gateway in earlier:
            if (found := await asyncio.to_thread(_taken_over, gateway, host, port)) is not None:
                return found
        while True:
            try:
                return listening.bind_sockets(host, port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or loop.time() > deadline:
                    raise
                await asyncio.sleep(0.1)
    except OSError as error:
        raise Conflict(
            f"cannot listen on {host}:{port} ({error.strerror or error}): choose another with "
            "--host and --port; --port 0 takes any free one"
        ) from error


def _taken_over(gateway: RunningGateway, host: str, port: int) -> list[socket.socket] | None:
    """Its sockets; None when it listens elsewhere, and drains, or does not answer."""
    try:
        found = gateway.sockets()
    except Unavailable as error:
        log.warning("an earlier gateway is ended", reason=error.reason)
        gateway.stop(0.0)
        return None
    if found and listening.listen_on(found, host, port):
        return found
    listening.close_all(found)
    gateway.drain()
    return None


def _listening_there(settings: Settings, sockets: list[socket.socket]) -> Settings:
    """With port 0 the first `serve` has chosen; systemd's sockets are where its unit says."""
    host, port = listening.address_of(sockets)
    return replace(settings, serve=replace(settings.serve, host=host, port=port))


def _make_private_folders(settings: Settings) -> None:
    """Only root can read images, models and logs, also in a state directory that others can read.
    A container reaches its files through mounts, never along these paths."""
    for folder in ("caches", "instances"):
        path = settings.state_dir / folder
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(
                "another `zeropull serve` runs with this state directory: stop it with "
                "`zeropull stop`, or use another --state-dir"
            ) from error
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        yield
    finally:
        os.close(fd)


async def _end(process: asyncio.subprocess.Process, name: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        log.error("process killed, it did not stop", name=name, seconds=STOP_TIMEOUT_S)
        process.kill()
        await process.wait()
