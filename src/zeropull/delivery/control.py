"""How the node agent speaks with the receiver: HTTP on a Unix socket that only root may use.

    POST /v1/attach   {"generation", "index_digest"}   -> {"path"}: readers may read
    POST /v1/detach   {"generation"}
    POST /v1/rest                                      what nobody has asked for may come, too
    POST /v1/peers    {"peers"}                        who else has blocks of this endpoint
    GET  /v1/state                                     -> ReceiverState

An error is {"message"} with 404 (not found), 503 (try again), 507 (no room) or 500.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from zeropull.delivery.receiver import Receiver, ReceiverState
from zeropull.delivery.suppliers import SupplierAddress
from zeropull.errors import DiskFull, IntegrityError, NotFound, Unavailable, ZeropullError

ATTACH_TIMEOUT_S = 900.0  # on the last rung, all data comes before the answer
CALL_TIMEOUT_S = 10.0
_MAX_BODY = 1 << 20
_STATUSES = (
    (NotFound, HTTPStatus.NOT_FOUND),
    (DiskFull, HTTPStatus.INSUFFICIENT_STORAGE),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
)

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class ReceiverConfig:
    """`receiver.json`: where the receiver keeps things and whom it asks. It holds a token."""

    source: SupplierAddress
    volumes_dir: str
    socket: str
    holder_socket: str
    journal: str  # on tmpfs: it is worthless after a reboot
    fuse_dir: str = ""  # mount point of the FUSE rung
    rung: Literal["auto", "fanotify", "fuse", "whole"] = "auto"
    log_level: str = "info"


@dataclass(frozen=True, slots=True)
class Attach:
    generation: int
    index_digest: str


@dataclass(frozen=True, slots=True)
class Attached:
    path: str


@dataclass(frozen=True, slots=True)
class Detach:
    generation: int


@dataclass(frozen=True, slots=True)
class Peers:
    peers: tuple[SupplierAddress, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    message: str


class ReceiverClient:
    """The node agent's side. Calls block."""

    def __init__(self, socket_path: Path) -> None:
        self._socket = socket_path

    def attach(self, generation: int, index_digest: str) -> Path:
        """Raises:
        NotFound, Unavailable, DiskFull: as the receiver says, or it does not answer.
        """
        request = Attach(generation, index_digest)
        return Path(self._call("POST", "/v1/attach", request, Attached, ATTACH_TIMEOUT_S).path)

    def detach(self, generation: int) -> None:
        self._call("POST", "/v1/detach", Detach(generation), None, CALL_TIMEOUT_S)

    def bring_rest(self) -> None:
        self._call("POST", "/v1/rest", None, None, CALL_TIMEOUT_S)

    def set_peers(self, peers: tuple[SupplierAddress, ...]) -> None:
        self._call("POST", "/v1/peers", Peers(peers), None, CALL_TIMEOUT_S)

    def state(self) -> ReceiverState:
        return self._call("GET", "/v1/state", None, ReceiverState, CALL_TIMEOUT_S)

    def _call(
        self, method: str, path: str, request: object, kind: type[Answer] | None, timeout_s: float
    ) -> Answer:
        connection = http.client.HTTPConnection("receiver", timeout=timeout_s)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout_s)
        with contextlib.closing(connection):
            try:
                connection.sock.connect(str(self._socket))
                body = None if request is None else msgspec.json.encode(request)
                connection.request(method, path, body)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(f"the receiver does not answer: {error!r}") from error
        if answer.status == HTTPStatus.OK:
            return msgspec.json.decode(content or b"null", type=kind or Any)
        try:
            message = msgspec.json.decode(content, type=Failed).message
        except msgspec.DecodeError:
            message = f"the receiver answers {answer.status}"
        for error_kind, status in _STATUSES:
            if answer.status == status:
                raise error_kind(message)
        raise Unavailable(message)


@contextlib.contextmanager
def serve_control(path: Path, receiver: Receiver) -> Iterator[None]:
    """Answer on the socket `path` while the block runs.

    Raises:
        OSError: the socket cannot be made.
    """
    path.unlink(missing_ok=True)
    old_mask = os.umask(0o177)
    try:
        server = _Server(str(path), _handler_of(_calls_of(receiver)))
    finally:
        os.umask(old_mask)
    threading.Thread(target=server.serve_forever, name="control", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


_Calls = dict[tuple[str, str], Callable[[bytes], object]]


def _calls_of(receiver: Receiver) -> _Calls:
    """What answers each method and path; it gets the body."""

    def attach(body: bytes) -> object:
        request = msgspec.json.decode(body, type=Attach)
        return Attached(str(receiver.attach(request.generation, request.index_digest)))

    def detach(body: bytes) -> None:
        receiver.detach(msgspec.json.decode(body, type=Detach).generation)

    def rest(_: bytes) -> None:
        receiver.bring_rest()

    def peers(body: bytes) -> None:
        receiver.suppliers.set_peers(msgspec.json.decode(body, type=Peers).peers)

    return {
        ("POST", "/v1/attach"): attach,
        ("POST", "/v1/detach"): detach,
        ("POST", "/v1/rest"): rest,
        ("POST", "/v1/peers"): peers,
        ("GET", "/v1/state"): lambda _: receiver.state(),
    }


def _handler_of(calls: _Calls) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._call()

        def do_POST(self) -> None:
            self._call()

        def _call(self) -> None:
            call = calls.get((self.command, self.path))
            size = min(int(self.headers.get("Content-Length", "0")), _MAX_BODY)
            body = self.rfile.read(size)
            if call is None:
                self._send(HTTPStatus.NOT_FOUND, Failed(f"there is no {self.path}"))
                return
            try:
                answer = call(body)
            except msgspec.DecodeError as error:
                self._send(HTTPStatus.BAD_REQUEST, Failed(str(error)))
            except OSError as error:
                self._send(HTTPStatus.INSUFFICIENT_STORAGE, Failed(str(error)))
            except (IntegrityError, ZeropullError) as error:
                status = next(
                    (status for kind, status in _STATUSES if isinstance(error, kind)),
                    HTTPStatus.SERVICE_UNAVAILABLE,
                )
                self._send(status, Failed(error.reason))
            else:
                self._send(HTTPStatus.OK, answer)

        def _send(self, status: HTTPStatus, message: object) -> None:
            content = b"" if message is None else msgspec.json.encode(message)
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def address_string(self) -> str:
            return "agent"

        def log_message(self, format: str, *arguments: Any) -> None:
            """Calls of the agent are not logged."""

    return Handler
