"""Plain blocking HTTP/1.1 to registries, with the errors that callers act on.

Blocking, because blobs are read by worker threads and processes; the few small calls of the
asynchronous client go through the same code in a thread.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPResponse, IncompleteRead
from urllib.parse import urljoin, urlsplit

from zeropull.errors import Unavailable
from zeropull.registry.addresses import origin_of, shown
from zeropull.registry.connecting import Connection, Route, connect, translated

REQUEST_TIMEOUT_S = 120.0  # a small answer is whole within this, however often bytes arrive
MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
BUSY = frozenset({408, 429, 500, 502, 503, 504})  # worth asking again
_READ_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Answer:
    """A small response, read whole. Header names are lower-case; the values of a name that came
    several times are joined by commas."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str


def redirect_target(url: str, location: str | None) -> str:
    """Where a redirect leads.

    Raises:
        Unavailable: no place, or from HTTPS to a plain-HTTP server elsewhere.
    """
    if not location:
        raise Unavailable(f"{shown(url)} answered with a redirect that leads nowhere")
    with translated(url):
        target = urljoin(url, location)
        parts = urlsplit(target)
        origin_of(target)  # refuses a port that is no number
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise Unavailable(f"{shown(url)} redirects to {shown(target)}, which is not HTTP")
    if urlsplit(url).scheme == "https" and parts.scheme == "http":
        raise Unavailable(
            f"{shown(url)} redirects to {shown(target)} without encryption, which is refused"
        )
    return target


def send(
    connection: Connection,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None = None,
) -> HTTPResponse:
    """Send one request; the response's body is not read yet."""
    with translated(url):
        target = _target(url, absolute=connection.absolute_form)
        return connection.request_answer(method, target, body, dict(headers))


def request(
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    route: Route,
    body: bytes | None = None,
    max_bytes: int,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> Answer:
    """One small request on a connection of its own; redirects are followed for GET.

    The Authorization header goes to the first server only. `timeout_s` bounds the whole.

    Raises:
        Unavailable: not reached, broke off, or more than `max_bytes`.
        AccessDenied: an address that is refused, or a certificate that is not trusted.
    """
    at, sent = url, dict(headers)
    deadline_s = time.monotonic() + timeout_s
    for _ in range(MAX_REDIRECTS):
        with contextlib.closing(connect(at, route)) as connection:
            connection.deadline_s = deadline_s
            response = send(connection, method, at, sent, body)
            if method == "GET" and response.status in REDIRECTS:
                target = redirect_target(at, response.getheader("Location"))
                if origin_of(target) != origin_of(at):
                    sent.pop("Authorization", None)
                at = target
                continue
            with translated(at):
                content = _read(response, max_bytes + 1)
            if len(content) > max_bytes:
                raise Unavailable(f"{shown(at)} answered with more than {max_bytes:,} bytes")
            fields: dict[str, str] = {}
            for name, value in response.getheaders():
                kept = fields.get(name.lower())
                fields[name.lower()] = value if kept is None else f"{kept}, {value}"
            return Answer(response.status, fields, content, at)
    raise Unavailable(f"{shown(url)} redirects more than {MAX_REDIRECTS} times")


def retry_after(value: str | None) -> float:
    """The seconds of a Retry-After header, 0.0 where there are none (RFC 9110, 10.2.3)."""
    text = (value or "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return max(0.0, when.timestamp() - time.time())


def _read(response: HTTPResponse, limit: int) -> bytes:
    content = bytearray()
    while len(content) < limit and (part := response.read1(min(_READ_BYTES, limit - len(content)))):
        content += part
    if len(content) < limit and response.length:
        raise IncompleteRead(bytes(content), response.length)
    return bytes(content)


def _target(url: str, *, absolute: bool) -> str:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{target}" if absolute else target
