"""How a command finds a running supervisor and asks its control plane.

A command waits for its imports, so this uses the HTTP client of the standard library.
"""

from __future__ import annotations

import fcntl
import http.client
import socket
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec

from zeropull.admin.messages import LogFolders, Status, Timeline
from zeropull.errors import Unavailable
from zeropull.resources.settings import Settings

Answer = TypeVar("Answer")


class AdminClient:
    """Calls on R/admin.sock, which only root can open. Each call blocks for at most `timeout_s`.

    Each call raises Unavailable when the control plane does not answer, or answers with a failure.
    The message has the words of the control plane.
    """

    def __init__(self, settings: Settings, *, timeout_s: float) -> None:
        self._settings = settings
        self._timeout_s = timeout_s

    def status(self) -> Status:
        return self._ask("status", Status)

    def timeline(self, endpoint: str, account: str | None = None) -> Timeline:
        """Launches of the newest endpoint with that name. `account` None: the configured one."""
        return self._ask(_of_endpoint(endpoint, "timeline", account), Timeline)

    def log_folders(self, endpoint: str, account: str | None = None) -> LogFolders:
        """Folders of the copies that exist now."""
        return self._ask(_of_endpoint(endpoint, "logs", account), LogFolders)

    def tear_down(self) -> None:
        """End every instance; returns when none is left."""
        self._call("POST", "teardown")

    def _ask(self, path: str, kind: type[Answer]) -> Answer:
        body = self._call("GET", path)
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise Unavailable(
                f"the control plane answers as another version does ({error}): restart "
                "`zeropull serve`"
            ) from error

    def _call(self, method: str, path: str) -> bytes:
        connection = _UnixConnection(self._settings.admin_socket, self._timeout_s)
        try:
            connection.request(method, f"/v1/admin/{path}")
            answer = connection.getresponse()
            body = answer.read()
        except (http.client.HTTPException, OSError) as error:
            raise Unavailable(
                f"the control plane of {self._settings.state_dir} does not answer on "
                f"{self._settings.admin_socket}: is `zeropull serve` running?"
            ) from error
        finally:
            connection.close()
        if answer.status >= 400:
            raise Unavailable(body.decode(errors="replace") or f"HTTP {answer.status}")
        return body


def supervisor_pid(run_dir: Path) -> int | None:
    """The process that supervises this run directory, None when none does."""
    path = run_dir / "supervisor.pid"
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(file.read() or b"0") or None
    except FileNotFoundError:
        pass
    return None


def _of_endpoint(endpoint: str, what: str, account: str | None) -> str:
    query = f"?{urlencode({'account': account})}" if account else ""
    return f"endpoints/{quote(endpoint, safe='')}/{what}{query}"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("control", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
