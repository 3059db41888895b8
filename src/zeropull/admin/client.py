"""How a command finds a running supervisor and asks its control plane.

Whoever types a command waits for its imports: only the standard library is used here.
"""

from __future__ import annotations

import fcntl
import http.client
import socket
from pathlib import Path

from zeropull.errors import Unavailable
from zeropull.resources.settings import Settings


def admin_call(settings: Settings, method: str, path: str, *, timeout_s: float) -> bytes:
    """Call /v1/admin/`path` on the control plane's socket and return the body. Blocking.

    Raises:
        Unavailable: it does not answer, or not with success; the message has its answer.
    """
    connection = _UnixConnection(settings.control_socket, timeout_s)
    try:
        connection.request(method, f"/v1/admin/{path}")
        answer = connection.getresponse()
        body = answer.read()
    except (http.client.HTTPException, OSError) as error:
        raise Unavailable(
            f"the control plane of {settings.state_dir} does not answer on "
            f"{settings.control_socket}: is `zeropull serve` running?"
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


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("control", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
