"""Plain blocking HTTP/1.1 to registries, with the errors that callers act on.

Blocking, because blobs are read by worker threads and processes; the few small calls of the
asynchronous client go through the same code in a thread.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    IncompleteRead,
)
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from zeropull.errors import AccessDenied, Unavailable

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 120.0  # a small answer is whole within this, however often bytes arrive
_READ_BYTES = 64 << 10
MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Answer:
    """A small response, read whole. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be this machine."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def split_host(host: str) -> str:
    """The name or address of a `host[:port]`."""
    return urlsplit(f"//{host}").hostname or host


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what decides whether credentials may be sent along."""
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    return parts.scheme, parts.hostname or "", parts.port or default


def redirect_target(url: str, location: str | None) -> str:
    """Where a redirect leads.

    Raises:
        Unavailable: no place, or from HTTPS to a plain-HTTP server elsewhere.
    """
    if not location:
        raise Unavailable(f"{_shown(url)} answered with a redirect that leads nowhere")
    with translated(url):
        target = urljoin(url, location)
        parts = urlsplit(target)
        origin_of(target)  # refuses a port that is no number
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise Unavailable(f"{_shown(url)} redirects to {_shown(target)}, which is not HTTP")
    if urlsplit(url).scheme == "https" and parts.scheme == "http":
        raise Unavailable(
            f"{_shown(url)} redirects to {_shown(target)} without encryption, which is refused"
        )
    return target


def connect(url: str) -> HTTPConnection:
    """An open connection to the server of `url`.

    Raises:
        Unavailable: with the host, the port and the operating system's reason.
    """
    with translated(url):
        scheme, host, port = origin_of(url)
    connection: HTTPConnection
    if scheme == "https":
        connection = HTTPSConnection(
            host, port, timeout=CONNECT_TIMEOUT_S, context=ssl.create_default_context()
        )
    else:
        connection = HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)
        connection.response_class = _WholeResponse
    with translated(url):
        connection.connect()
    if scheme == "https":
        connection.sock.settimeout(READ_TIMEOUT_S)
    else:
        _block_with_timeout(connection.sock, READ_TIMEOUT_S)
    return connection


def send(
    connection: HTTPConnection,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None = None,
) -> HTTPResponse:
    """Send one request; the response's body is not read yet."""
    parts = urlsplit(url)
    with translated(url):
        connection.request(method, _target(parts), body, dict(headers))
        return connection.getresponse()


def request(
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    body: bytes | None = None,
    max_bytes: int,
) -> Answer:
    """One small request on a connection of its own; redirects are followed for GET.

    The Authorization header goes to the first server only.

    Raises:
        Unavailable: not reached, broke off, or more than `max_bytes`.
    """
    at, sent = url, dict(headers)
    deadline_s = time.monotonic() + REQUEST_TIMEOUT_S
    for _ in range(MAX_REDIRECTS):
        with contextlib.closing(connect(at)) as connection:
            response = send(connection, method, at, sent, body)
            if method == "GET" and response.status in REDIRECTS:
                target = redirect_target(at, response.getheader("Location"))
                if origin_of(target) != origin_of(at):
                    sent.pop("Authorization", None)
                at = target
                continue
            with translated(at):
                content = _read(response, max_bytes + 1, deadline_s)
            if len(content) > max_bytes:
                raise Unavailable(f"{_shown(at)} answered with more than {max_bytes:,} bytes")
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, content, at)
    raise Unavailable(f"{_shown(url)} redirects more than {MAX_REDIRECTS} times")


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn what sockets, TLS and HTTP parsing raise into errors of ours that say what to do."""
    try:
        _, host, port = origin_of(url)
    except ValueError as error:
        raise Unavailable(f"{_shown(url)[:200]!r} is no address: {error}") from error
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise AccessDenied(
            f"{host}:{port} shows a certificate that is not trusted here: {error.verify_message}. "
            "Install its authority's certificate on this machine"
        ) from error
    except ssl.SSLError as error:
        raise Unavailable(
            f"{host}:{port} does not speak TLS as expected: {error.reason or error}. "
            "If it is a plain-HTTP registry, set plain_http = true for it in the configuration"
        ) from error
    except TimeoutError as error:
        raise Unavailable(f"{host}:{port} did not answer in time") from error
    except OSError as error:
        raise Unavailable(
            f"{host}:{port} cannot be reached: {error.strerror or error}. "
            "Check the address, the network and that the registry runs"
        ) from error
    except HTTPException as error:
        raise Unavailable(
            f"{host}:{port} broke off or does not speak HTTP: {type(error).__name__} {error}"
        ) from error
    except ValueError as error:
        # Of the standard library, for addresses and header fields that cannot be sent.
        raise Unavailable(
            f"{host}:{port} leads to an address, or asks for a header, that is not valid: {error}"
        ) from error


class _WholeResponse(HTTPResponse):
    """Fills large buffers with one system call.

    http.client's own reader comes back to Python for every 64 KiB or so that has arrived, which
    cost half a second of processor time per GB, much of it in taking turns with other threads.
    """

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(_WholeReads(sock, raw))


class _WholeReads(io.RawIOBase):
    """Reads a blocking socket; `raw`, closed with this, is what keeps it open until then."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._sock = sock
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        whole = socket.MSG_WAITALL if len(buffer) > _READ_BYTES else 0
        try:
            return self._sock.recv_into(buffer, 0, whole)
        except BlockingIOError:
            raise TimeoutError("the read timed out") from None

    def close(self) -> None:
        self._raw.close()
        super().close()


def _block_with_timeout(sock: socket.socket, seconds: float) -> None:
    """Time-outs of the kernel: with Python's the socket is a non-blocking one, for which
    MSG_WAITALL means nothing."""
    sock.settimeout(None)
    interval = struct.pack("@ll", int(seconds), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)


def _read(response: HTTPResponse, limit: int, deadline_s: float) -> bytes:
    content = bytearray()
    while len(content) < limit and (part := response.read1(min(_READ_BYTES, limit - len(content)))):
        content += part
        if time.monotonic() > deadline_s:
            raise TimeoutError
    if len(content) < limit and response.length:
        raise IncompleteRead(bytes(content), response.length)
    return bytes(content)


def _target(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _shown(url: str) -> str:
    """A URL for messages: queries may carry signatures, so they are left out."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
