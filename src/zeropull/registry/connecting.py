"""Connections to registries: addresses checked, TLS, proxies, and a deadline for every wait.

Sockets are made here and handed to http.client, which would give neither a deadline to the head of
an answer nor a look at the address that a name leads to.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import socket
import ssl
import struct
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import unquote, urlsplit

from zeropull.errors import AccessDenied, ConfigurationError, Unavailable
from zeropull.registry.addresses import Reach, origin_of, shown, split_host
from zeropull.registry.proxies import proxy_of
from zeropull.resources.sources import RegistryAccess

CONNECT_TIMEOUT_S = 10.0  # each address of a name, the proxy's answer, the TLS handshake
READ_TIMEOUT_S = 30.0  # one read
HEAD_TIMEOUT_S = 60.0  # the whole head of an answer, however it drips
_READ_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Route:
    """How the servers of one registry are connected to. `host` is the registry's own, to which
    alone `access` applies; `reach` limits the addresses of every other one, too."""

    host: str
    access: RegistryAccess | None
    reach: Reach

    @classmethod
    def of(cls, host: str, access: RegistryAccess | None) -> Route:
        return cls(split_host(host), access, Reach.of(host, access))


@dataclass(frozen=True, slots=True)
class RateFloor:
    """A connection that brings fewer bytes per second, over `window_s` of waiting for them, is
    given up. Links that are shared by sixteen of them stay above it."""

    bytes_per_s: float = 1024.0
    window_s: float = 30.0


class Connection(HTTPConnection):
    """An open connection; it never opens itself again. `deadline_s`, of the monotonic clock, ends
    every read that is under way or follows; `floor` ends reads that are too slow."""

    auto_open = 0

    def __init__(self, host: str, port: int, sock: socket.socket, *, scheme: str) -> None:
        super().__init__(host, port)
        self.default_port = 443 if scheme == "https" else 80
        self.sock = sock
        self.deadline_s = float("inf")
        self.floor: RateFloor | None = None
        self.absolute_form = False  # a proxy for plain HTTP is told the whole URL
        self.response_class = functools.partial(_TimedResponse, self)  # type: ignore[assignment]

    def request_answer(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str]
    ) -> HTTPResponse:
        """Send one request; the head of the answer is there when this returns."""
        outer_s = self.deadline_s
        self.deadline_s = min(outer_s, time.monotonic() + HEAD_TIMEOUT_S)
        self.request(method, target, body, headers)
        response = self.getresponse()
        self.deadline_s = outer_s
        return response


def connect(url: str, route: Route) -> Connection:
    """An open connection to the server of `url`, through a proxy where the environment names one.

    Raises:
        Unavailable: with the host, the port and the operating system's reason.
        AccessDenied: an address that is refused, or a certificate that is not trusted.
        ConfigurationError: certificates or keys that cannot be used.
    """
    with translated(url):
        scheme, host, port = origin_of(url)
        proxy = proxy_of(url, os.environ)
    if proxy is None:
        with translated(url):
            sock = _open_socket(host, port, route.reach)
    else:
        with contextlib.suppress(ValueError):
            route.reach.check(host, host)  # a name is the proxy's to resolve
        with translated(proxy):
            sock = _open_through(proxy, host, port, is_tunnel=scheme == "https")
    try:
        with translated(url):
            if scheme == "https":
                sock = _context(host, route).wrap_socket(sock, server_hostname=host)
                sock.settimeout(READ_TIMEOUT_S)
            else:
                _block_with_timeout(sock, READ_TIMEOUT_S)
    except BaseException:
        sock.close()
        raise
    connection = Connection(host, port, sock, scheme=scheme)
    connection.absolute_form = proxy is not None and scheme == "http"
    return connection


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn what sockets, TLS and HTTP parsing raise into errors of ours that say what to do."""
    try:
        _, host, port = origin_of(url)
    except ValueError as error:
        raise Unavailable(f"{shown(url)[:200]!r} is no address: {error}") from error
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise AccessDenied(
            f"{host}:{port} shows a certificate that is not trusted here: {error.verify_message}. "
            "Install its authority's certificate on this machine, or set ca_file for it in the "
            "configuration"
        ) from error
    except ssl.SSLError as error:
        raise Unavailable(
            f"{host}:{port} does not speak TLS as expected: {error.reason or error}. "
            "If it is a plain-HTTP registry, set plain_http = true for it in the configuration"
        ) from error
    except TimeoutError as error:
        raise Unavailable(f"{host}:{port} did not answer in time") from error
    except (ConnectionResetError, BrokenPipeError) as error:
        raise Unavailable(
            f"{host}:{port} broke off: {error.strerror or error}", retry_after_s=0.0
        ) from error
    except OSError as error:
        raise Unavailable(
            f"{host}:{port} cannot be reached: {error.strerror or error}. "
            "Check the address, the network and that the registry runs"
        ) from error
    except HTTPException as error:
        raise Unavailable(
            f"{host}:{port} broke off or does not speak HTTP: {type(error).__name__} {error}",
            retry_after_s=0.0,
        ) from error
    except ValueError as error:
        # Of the standard library, for addresses and header fields that cannot be sent.
        raise Unavailable(
            f"{host}:{port} leads to an address, or asks for a header, that is not valid: {error}"
        ) from error


def _open_socket(host: str, port: int, reach: Reach | None) -> socket.socket:
    """The first of the host's addresses that answers; each is checked before it is asked."""
    failure: OSError = OSError(0, "the name has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
        if reach is not None:
            reach.check(host, str(address[0]))
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def _open_through(proxy: str, host: str, port: int, *, is_tunnel: bool) -> socket.socket:
    parts = urlsplit(proxy)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigurationError(f"proxy {shown(proxy)!r}: only http:// and https:// can be used")
    default = 443 if parts.scheme == "https" else 80
    sock = _open_socket(parts.hostname, parts.port or default, None)
    try:
        if parts.scheme == "https":
            context = ssl.create_default_context()
            sock = context.wrap_socket(sock, server_hostname=parts.hostname)
        if is_tunnel:
            _make_tunnel(sock, proxy, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except BaseException:
        sock.close()
        raise
    return sock


def _make_tunnel(sock: socket.socket, proxy: str, target: str) -> None:
    """CONNECT (RFC 9110, section 9.3.6). The proxy's answer has no body, and nothing follows it
    before we speak, so that it may be read byte by byte."""
    parts = urlsplit(proxy)
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {b64encode(pair.encode()).decode()}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = sock.recv(1)
        if not part or len(head) > _READ_BYTES or time.monotonic() > deadline_s:
            raise TimeoutError("the proxy's answer has no end")
        head += part
    status = head.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)
    if len(status) < 2 or not status[1].startswith("2"):
        raise Unavailable(
            f"proxy {shown(proxy)} does not connect to {target}: {' '.join(status[1:])[:100]}"
        )


def _context(host: str, route: Route) -> ssl.SSLContext:
    """TLS as the configuration says for the registry's own host, and as the system says for all
    others. An authority counts for all servers that the registry leads to."""
    access = route.access
    if access is None:
        return ssl.create_default_context()
    try:
        context = ssl.create_default_context()
        if access.ca:
            context.load_verify_locations(cadata=access.ca)
        if host == route.host:
            if access.skip_verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if access.client_cert:
                _load_client(context, access.client_cert, access.client_key)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            f"registry {access.host}: its ca_file, cert_file or key_file cannot be used: {error}"
        ) from error
    return context


def _load_client(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    """OpenSSL reads these from files only; this one has no name and no copy on any disk."""
    memory = os.memfd_create("zeropull-client-certificate")
    try:
        os.write(memory, f"{certificate}\n{key or ''}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)


class _TimedResponse(HTTPResponse):
    """Keeps the connection's deadline, and fills large buffers with one system call.

    http.client's own reader comes back to Python for every 64 KiB or so that has arrived, which
    cost half a second of processor time per GB, much of it in taking turns with other threads.
    """

    def __init__(
        self, connection: Connection, sock: socket.socket, *arguments: Any, **options: Any
    ) -> None:
        super().__init__(sock, *arguments, **options)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(_TimedReads(connection, sock, raw))


class _TimedReads(io.RawIOBase):
    """Reads a socket; `raw`, closed with this, is what keeps it open until then."""

    def __init__(self, connection: Connection, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._connection = connection
        self._sock = sock
        self._raw = raw
        self._whole = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL
        self._waited_s = 0.0
        self._waited_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        began_s = time.monotonic()
        if began_s > self._connection.deadline_s:
            raise TimeoutError("the answer took too long")
        whole = self._whole if len(buffer) > _READ_BYTES else 0
        try:
            count = self._sock.recv_into(buffer, 0, whole)
        except BlockingIOError:
            raise TimeoutError("the read timed out") from None
        if count and self._connection.floor is not None:
            self._check_rate(self._connection.floor, count, time.monotonic() - began_s)
        return count

    def _check_rate(self, floor: RateFloor, count: int, waited_s: float) -> None:
        self._waited_s += waited_s
        self._waited_bytes += count
        if self._waited_s < floor.window_s:
            return
        if self._waited_bytes < floor.bytes_per_s * self._waited_s:
            raise Unavailable(
                f"{self._connection.host}:{self._connection.port} sent {self._waited_bytes:,} "
                f"bytes in {self._waited_s:.0f} s: too slow"
            )
        self._waited_s = self._waited_bytes = 0

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
