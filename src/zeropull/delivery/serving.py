"""Serves files and blocks over HTTPS to those who have a grant: the source's and a peer's server.

A thread for each connection, since sending is blocking work outside the interpreter's lock (TLS,
reads of files). What is served comes from a `Shelf`. Requests: `zeropull.delivery.wire`.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from zeropull.delivery.certificates import server_context
from zeropull.delivery.grants import Grant
from zeropull.delivery.wire import (
    BLOCKS_HEADER,
    BLOCKS_PATH,
    FILES_PATH,
    LENGTH,
    MAX_REQUEST_BYTES,
    MISSING,
    BlockRun,
    BlocksRequest,
    FilesRequest,
    decode_request,
)
from zeropull.errors import InvalidInput, NotFound, ZeropullError
from zeropull.telemetry import get_logger

IDLE_TIMEOUT_S = 60.0  # of a kept connection, and of one that sends its request slowly
HANDSHAKE_TIMEOUT_S = 10.0
_SENT_BYTES = 256 << 10

log = get_logger(__name__)


class Blocks(Protocol):
    """The data of one layer, as far as it is here."""

    def available(self, first: int, count: int) -> int:
        """How many of the blocks are here, counted from the first on without a gap."""

    def size(self, first: int, count: int) -> int:
        """Of so many blocks together, in bytes."""

    def read(self, block: int) -> bytes:
        """One block that is here."""


class Shelf(Protocol):
    """What is there to be served. Methods are called from many threads."""

    def file(self, grant: Grant, generation: int, name: str) -> Path | None:
        """A small file of a generation of the grant's endpoint; None when there is none."""

    def layer(self, grant: Grant, generation: int, chain_id: str) -> Blocks:
        """Raises:
        NotFound: the grant's endpoint has no such layer here.
        """


class EgressLimit:
    """At most so many bytes a second over all connections; None = no limit."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_s = 0.0

    def pause_s(self, count: int, now_s: float) -> float:
        """How long to wait before `count` bytes are sent. `now_s`: of a monotonic clock."""
        if self._bytes_per_s is None:
            return 0.0
        with self._lock:
            begin_s = max(now_s, self._free_s)
            self._free_s = begin_s + count / self._bytes_per_s
        return begin_s - now_s


class BlockServer:
    """Listens from `start` to `close`. `find_grant` says what a token is good for."""

    def __init__(
        self,
        shelf: Shelf,
        find_grant: Callable[[str], Grant | None],
        certificate: Path,
        *,
        max_connections: int,
        egress: EgressLimit,
    ) -> None:
        self._shelf = shelf
        self._find_grant = find_grant
        self._context = server_context(certificate)
        self._slots = threading.BoundedSemaphore(max_connections)
        self._egress = egress
        self._server: http.server.ThreadingHTTPServer | None = None
        self._lock = threading.Lock()
        self.sent_bytes = 0
        self.refused = 0

    def start(self, host: str, port: int = 0) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the address cannot be listened on.
        """
        server = _Server((host, port), _handler_of(self), bind_and_activate=False)
        server.owner = self
        server.server_bind()
        server.server_activate()
        self._server = server
        threading.Thread(target=server.serve_forever, name="blocks", daemon=True).start()
        return int(server.server_address[1])

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    @contextlib.contextmanager
    def connected(self, connection: socket.socket) -> Iterator[ssl.SSLSocket | None]:
        """The connection with TLS on it; None when there are too many, or it is no TLS."""
        if not self._slots.acquire(blocking=False):
            self._note_refused("too many connections")
            yield None
            return
        try:
            connection.settimeout(HANDSHAKE_TIMEOUT_S)
            try:
                secure = self._context.wrap_socket(connection, server_side=True)
            except OSError as error:  # SSLError is one
                self._note_refused(repr(error))
                yield None
                return
            secure.settimeout(IDLE_TIMEOUT_S)
            secure.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with secure:
                yield secure
        finally:
            self._slots.release()

    def grant_of(self, authorization: str) -> Grant | None:
        scheme, _, token = authorization.partition(" ")
        grant = self._find_grant(token) if scheme == "Bearer" else None
        if grant is None:
            self._note_refused("no grant")
        return grant

    def files(self, grant: Grant, request: FilesRequest) -> Iterator[bytes]:
        for name in request.names:
            path = self._shelf.file(grant, request.generation, name)
            try:
                content = None if path is None else path.read_bytes()
            except OSError:
                content = None
            if content is None:
                yield LENGTH.pack(MISSING)
            else:
                yield LENGTH.pack(len(content))
                yield content

    def blocks(self, grant: Grant, request: BlocksRequest) -> tuple[int, int, Iterator[bytes]]:
        """How many blocks there are of those that were asked for, their bytes, and their content.

        Raises:
            NotFound: not even the first layer is here.
        """
        here: list[tuple[Blocks, BlockRun, int]] = []
        for run in request.runs:
            try:
                layer = self._shelf.layer(grant, request.generation, run.chain_id)
            except NotFound:
                if not here:
                    raise
                break
            count = layer.available(run.first, run.count)
            here.append((layer, run, count))
            if count < run.count:
                break
        size = sum(layer.size(run.first, count) for layer, run, count in here)
        return sum(count for _, _, count in here), size, _contents(here)

    def pace(self, content: bytes) -> Iterator[bytes]:
        """The content in pieces, each when its turn has come, and counted."""
        for start in range(0, len(content), _SENT_BYTES):
            piece = content[start : start + _SENT_BYTES]
            time.sleep(self._egress.pause_s(len(piece), time.monotonic()))
            yield piece
            with self._lock:
                self.sent_bytes += len(piece)

    def _note_refused(self, reason: str) -> None:
        with self._lock:
            self.refused += 1
        log.info("caller refused", reason=reason)


def _contents(here: Sequence[tuple[Blocks, BlockRun, int]]) -> Iterator[bytes]:
    for layer, run, count in here:
        for block in range(run.first, run.first + count):
            yield layer.read(block)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: BlockServer

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self.owner.connected(request) as secure:
            if secure is not None:
                self.RequestHandlerClass(secure, client_address, self)  # type: ignore[arg-type]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away is no error of ours; others were logged where they arose."""


def _handler_of(owner: BlockServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = "zeropull"
        sys_version = ""
        timeout = IDLE_TIMEOUT_S

        def do_POST(self) -> None:
            grant = owner.grant_of(self.headers.get("Authorization", ""))
            if grant is None:
                # The body was not read: nothing more is taken from this connection.
                self._refuse(HTTPStatus.UNAUTHORIZED)
                return
            try:
                self._answer(grant, self._body())
            except InvalidInput as error:
                log.warning("request refused", instance_id=grant.instance_id, reason=error.reason)
                self._refuse(HTTPStatus.BAD_REQUEST)
            except NotFound:
                self._send(HTTPStatus.NOT_FOUND, {"Content-Length": "0"})
            except ZeropullError as error:
                log.error("request failed", instance_id=grant.instance_id, reason=error.reason)
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)

        def _answer(self, grant: Grant, body: bytes) -> None:
            if self.path == FILES_PATH:
                parts = owner.files(grant, decode_request(body, FilesRequest))
                self._send(HTTPStatus.OK, {"Transfer-Encoding": "chunked"})
                for part in parts:
                    for piece in owner.pace(part):
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")
            elif self.path == BLOCKS_PATH:
                count, size, contents = owner.blocks(grant, decode_request(body, BlocksRequest))
                headers = {"Content-Length": str(size), BLOCKS_HEADER: str(count)}
                self._send(HTTPStatus.OK, headers)
                for content in contents:
                    for piece in owner.pace(content):
                        self.wfile.write(piece)
            else:
                raise NotFound(self.path)

        def _body(self) -> bytes:
            try:
                size = int(self.headers.get("Content-Length", ""))
            except ValueError:
                raise InvalidInput("a request has a Content-Length") from None
            if not 0 <= size <= MAX_REQUEST_BYTES:
                raise InvalidInput(f"a request has at most {MAX_REQUEST_BYTES} bytes")
            return self.rfile.read(size)

        def _refuse(self, status: HTTPStatus) -> None:
            self.close_connection = True
            self._send(status, {"Content-Length": "0", "Connection": "close"})

        def _send(self, status: HTTPStatus, headers: dict[str, str]) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Requests are counted, not logged."""

    return Handler
