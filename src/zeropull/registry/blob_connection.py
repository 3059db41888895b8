"""One connection to a registry, or to the store that it redirects to, for byte ranges of a blob."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable
from http.client import HTTPResponse
from urllib.parse import urlsplit

from zeropull.errors import AccessDenied, IntegrityError, NotFound, Unavailable, ZeropullError
from zeropull.registry.addresses import origin_of
from zeropull.registry.auth import Authorizer
from zeropull.registry.connecting import Connection, RateFloor, Route, connect, translated
from zeropull.registry.http import BUSY, REDIRECTS, redirect_target, retry_after, send
from zeropull.registry.source import BlobSource

_RECEIVE_BYTES = 1 << 20
_MAX_ERROR_BYTES = 64 << 10
_MAX_STEPS = 8  # redirects and fresh tokens within one try
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
# What proxies answer to a Range that they do not know (harbor#16802); 416 may also be true.
_NO_RANGES = frozenset({400, 405, 406, 416, 501})


class BlobConnection:
    """`on_open(has_ranges)` is called whenever a response has begun: False says that the server
    sends the blob whole only, which is then read on in order. `is_stopped` ends a long skip."""

    def __init__(
        self,
        source: BlobSource,
        authorizer: Authorizer,
        *,
        is_stopped: Callable[[], bool],
        on_open: Callable[[bool], None],
        on_bytes: Callable[[int], None],
        floor: RateFloor,
    ) -> None:
        self._source = source
        self._authorizer = authorizer
        self._is_stopped = is_stopped
        self._on_open = on_open
        self._on_bytes = on_bytes
        self._floor = floor
        self._route = Route.of(urlsplit(source.url).netloc, source.access)
        self._connection: Connection | None = None
        self._origin: tuple[str, str, int] | None = None
        self._response: HTTPResponse | None = None
        self._position = 0  # of the next byte of the response
        self._remaining = 0  # bytes that it still has
        self._location: str | None = None  # where the registry's redirect led
        self._asks_ranges = True

    def receive(self, view: memoryview, offset: int) -> int:
        """Put bytes from `offset` on into `view`, as many as there are; returns how many.

        Raises:
            Unavailable: it broke off, is busy, or too slow. Call `close` before the next try.
            NotFound, AccessDenied, IntegrityError: this server does not have these bytes for us.
        """
        response = self._response
        if response is None or self._position != offset or self._remaining == 0:
            response = self._open(offset, len(view))
        count = self._read(response, view)
        if count == 0:
            raise Unavailable(
                f"{self._source.host} broke off {self._source.digest} at byte {offset:,} "
                f"of {self._source.size:,}"
            )
        return count

    def close(self) -> None:
        """Let the connection go; a receive that waits in another thread returns."""
        connection, self._connection, self._response = self._connection, None, None
        if connection is not None:
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _read(self, response: HTTPResponse, view: memoryview) -> int:
        piece = view[: min(_RECEIVE_BYTES, self._remaining)]
        with translated(self._location or self._source.url):
            count = response.readinto(piece)
        self._position += count
        self._remaining -= count
        self._on_bytes(count)
        return count

    def _open(self, offset: int, length: int) -> HTTPResponse:
        """A response whose next byte is the one at `offset`."""
        challenges = 0
        moved = False
        for _ in range(_MAX_STEPS):
            url = self._location or self._source.url
            is_origin = origin_of(url) == origin_of(self._source.url)
            header = self._authorizer.header(self._source.repository) if is_origin else None
            response = self._ask(url, offset, length, header)
            status = response.status
            if status in {200, 206} and self._begin(response, offset):
                return response
            challenge = response.getheader("WWW-Authenticate") or ""
            location = response.getheader("Location")
            later_s = retry_after(response.getheader("Retry-After"))
            self._discard(response)
            if status in REDIRECTS:
                self._location = redirect_target(url, location)
            elif (status == 206 or status in _NO_RANGES) and self._asks_ranges:
                self._asks_ranges = False  # once, and for all that is still to be read
            elif self._location is not None and status in {400, 401, 403, 404, 410}:
                if moved:
                    raise self._refused(status, later_s)
                self._location, moved = None, True  # signed addresses expire: ask for a new one
            elif challenges < 2 and self._is_let_in(status, challenge, header):
                challenges += 1
            else:
                raise self._refused(status, later_s)
        raise Unavailable(f"{self._source.host} redirects {self._source.digest} in a circle")

    def _is_let_in(self, status: int, challenge: str, refused: str | None) -> bool:
        """Whether there is another header to try."""
        repository = self._source.repository
        if status == 401:
            self._authorizer.answer(repository, challenge, refused)
            return True
        return status == 403 and self._authorizer.renew(repository, refused) is not None

    def _ask(self, url: str, offset: int, length: int, authorization: str | None) -> HTTPResponse:
        headers = {"User-Agent": self._source.user_agent, "Accept-Encoding": "identity"}
        if self._asks_ranges:
            headers["Range"] = f"bytes={offset}-{offset + length - 1}"
        if authorization is not None:
            headers["Authorization"] = authorization
        if self._response is not None or self._origin != origin_of(url):
            self.close()  # a response that was not read to its end blocks its connection
        if self._connection is None or self._connection.sock is None:
            self._connection = connect(url, self._route)
            self._connection.floor = self._floor
            self._origin = origin_of(url)
        return send(self._connection, "GET", url, headers)

    def _begin(self, response: HTTPResponse, offset: int) -> bool:
        """Whether the response has the bytes from `offset` on. False: it is an odd one, and ranges
        were asked for."""
        size = self._source.size
        if response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range") or "")
            if match is None or int(match[1]) != offset or int(match[2]) < offset:
                if self._asks_ranges:
                    return False
                self.close()
                raise IntegrityError(
                    f"{self._source.host} answered another range of {self._source.digest} than "
                    f"the one from byte {offset:,}"
                )
            if match[3] != "*" and int(match[3]) != size:
                self.close()
                raise self._wrong_length(match[3])
            self._response = response
            self._position, self._remaining = offset, int(match[2]) + 1 - offset
            self._on_open(True)
            return True
        length = response.getheader("Content-Length")
        if length is not None and length.strip() != str(size):
            self.close()
            raise self._wrong_length(length)
        self._response = response
        self._position, self._remaining = 0, size
        self._on_open(False)
        self._skip_to(offset, response)
        return True

    def _skip_to(self, offset: int, response: HTTPResponse) -> None:
        scratch = memoryview(bytearray(min(_RECEIVE_BYTES, max(offset, 1))))
        while self._position < offset:
            if not self._read(response, scratch[: offset - self._position]) or self._is_stopped():
                raise Unavailable(f"{self._source.host} broke off {self._source.digest}")

    def _discard(self, response: HTTPResponse) -> None:
        with translated(self._source.url):
            response.read(_MAX_ERROR_BYTES)
        if not response.isclosed():
            self.close()

    def _wrong_length(self, offered: str) -> IntegrityError:
        shown = f"{int(offered):,}" if re.fullmatch(r"[0-9]{1,20}", offered) else offered[:20]
        return IntegrityError(
            f"{self._source.host} has {shown} bytes for {self._source.digest}, "
            f"and the manifest says {self._source.size:,}"
        )

    def _refused(self, status: int, later_s: float) -> ZeropullError:
        what = f"blob {self._source.digest} of {self._source.repository}"
        host = self._source.host
        if status in {404, 410}:
            return NotFound(f"registry {host} does not have {what}: push the image again")
        if status in {401, 403}:
            return AccessDenied(f"registry {host} refuses {what} ({status}): check the credentials")
        return Unavailable(
            f"registry {host} answers {status} for {what}",
            retry_after_s=later_s if status in BUSY else None,
        )
