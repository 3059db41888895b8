"""Fills buffers with byte ranges of one blob over one connection, however often that breaks off."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable
from http.client import HTTPConnection, HTTPResponse

from zeropull.errors import AccessDenied, IntegrityError, NotFound, Unavailable, ZeropullError
from zeropull.registry.auth import Authorizer
from zeropull.registry.http import REDIRECTS, connect, origin_of, redirect_target, send, translated
from zeropull.registry.source import BlobSource

# Waits before the next try; a try that brought bytes starts the row again.
_RETRY_DELAYS_S = (0.0, 0.2, 0.5, 1.0, 2.0)
_MAX_RETRY_AFTER_S = 10.0
_RECEIVE_BYTES = 1 << 20
_MAX_ERROR_BYTES = 64 << 10
_MAX_STEPS = 8  # redirects and fresh tokens within one try
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class RangeReader:
    """One connection to the registry, or to the store that it redirects to.

    `on_open(has_ranges)` is called whenever a response has begun: False says that the server sends
    the blob whole only, which is then read on in order.
    """

    def __init__(
        self,
        source: BlobSource,
        authorizer: Authorizer,
        *,
        pause: Callable[[float], bool],
        on_open: Callable[[bool], None],
        on_bytes: Callable[[int], None] | None,
    ) -> None:
        """`pause(seconds)` waits, and returns True as soon as reading should stop."""
        self._source = source
        self._authorizer = authorizer
        self._pause = pause
        self._on_open = on_open
        self._on_bytes = on_bytes
        self._connection: HTTPConnection | None = None
        self._origin: tuple[str, str, int] | None = None
        self._response: HTTPResponse | None = None
        self._position = 0  # of the next byte of the response
        self._remaining = 0  # bytes that it still has
        self._location: str | None = None  # where the registry's redirect led
        self._retry_after_s = 0.0

    def fill(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the blob's bytes from `offset` on, resuming where it broke off.

        Raises:
            Unavailable: the last of several tries without a single byte failed, or stopped.
            NotFound, AccessDenied, IntegrityError: at once.
        """
        done = failures = 0
        while done < len(view):
            try:
                done += self._receive(view[done:], offset + done)
                failures = 0
            except Unavailable:
                self.close()
                if failures >= len(_RETRY_DELAYS_S):
                    raise
                delay_s = max(_RETRY_DELAYS_S[failures], self._retry_after_s)
                failures += 1
                if self._pause(delay_s):
                    raise
            if self._pause(0):
                raise Unavailable(f"reading {self._source.digest} was stopped")

    def close(self) -> None:
        """Let the connection go; a receive that waits in another thread returns."""
        connection, self._connection, self._response = self._connection, None, None
        if connection is not None:
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _receive(self, view: memoryview, offset: int) -> int:
        response = self._response
        if response is None or self._position != offset or self._remaining == 0:
            response = self._open(offset, len(view))
        piece = view[: min(_RECEIVE_BYTES, self._remaining)]
        with translated(self._location or self._source.url):
            count = response.readinto(piece)
        if count == 0:
            raise Unavailable(
                f"{self._source.host} broke off {self._source.digest} at byte {offset:,} "
                f"of {self._source.size:,}"
            )
        self._position += count
        self._remaining -= count
        if self._on_bytes is not None:
            self._on_bytes(count)
        return count

    def _open(self, offset: int, length: int) -> HTTPResponse:
        """A response whose next byte is the one at `offset`."""
        challenged = moved = False
        for _ in range(_MAX_STEPS):
            url = self._location or self._source.url
            is_origin = origin_of(url) == origin_of(self._source.url)
            authorization = self._authorizer.header(self._source.repository) if is_origin else None
            response = self._ask(url, offset, length, authorization)
            if response.status in {200, 206}:
                self._begin(response, offset)
                return response
            challenge = response.getheader("WWW-Authenticate") or ""
            location = response.getheader("Location")
            retry_after = response.getheader("Retry-After") or ""
            self._discard(response)
            if response.status in REDIRECTS:
                self._location = redirect_target(url, location)
            elif self._location is not None and response.status in {400, 401, 403, 404, 410}:
                if moved:
                    raise self._refused(response.status)
                self._location, moved = None, True  # signed addresses expire: ask for a new one
            elif response.status == 401 and not challenged:
                challenged = True
                self._authorizer.answer(self._source.repository, challenge, authorization)
            else:
                if retry_after.isdecimal() and retry_after.isascii():
                    self._retry_after_s = min(float(retry_after), _MAX_RETRY_AFTER_S)
                raise self._refused(response.status)
        raise Unavailable(f"{self._source.host} redirects {self._source.digest} in a circle")

    def _ask(self, url: str, offset: int, length: int, authorization: str | None) -> HTTPResponse:
        headers = {
            "User-Agent": self._source.user_agent,
            "Accept-Encoding": "identity",
            "Range": f"bytes={offset}-{offset + length - 1}",
        }
        if authorization is not None:
            headers["Authorization"] = authorization
        if self._response is not None or self._origin != origin_of(url):
            self.close()  # a response that was not read to its end blocks its connection
        if self._connection is None:
            self._connection = connect(url)
            self._origin = origin_of(url)
        return send(self._connection, "GET", url, headers)

    def _begin(self, response: HTTPResponse, offset: int) -> None:
        size = self._source.size
        self._retry_after_s = 0.0
        self._response = response
        if response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range") or "")
            if match is None or int(match[1]) != offset or int(match[2]) < offset:
                self.close()
                raise IntegrityError(
                    f"{self._source.host} answered another range of {self._source.digest} than "
                    f"the one from byte {offset:,}"
                )
            if match[3] != "*" and int(match[3]) != size:
                self.close()
                raise self._wrong_length(match[3])
            self._position, self._remaining = offset, int(match[2]) + 1 - offset
            self._on_open(True)
            return
        length = response.getheader("Content-Length")
        if length is not None and length.strip() != str(size):
            self.close()
            raise self._wrong_length(length)
        self._position, self._remaining = 0, size
        self._on_open(False)
        self._skip_to(offset, response)

    def _skip_to(self, offset: int, response: HTTPResponse) -> None:
        scratch = memoryview(bytearray(min(_RECEIVE_BYTES, max(offset, 1))))
        while self._position < offset:
            with translated(self._location or self._source.url):
                count = response.readinto(scratch[: offset - self._position])
            if count == 0 or self._pause(0):
                raise Unavailable(f"{self._source.host} broke off {self._source.digest}")
            self._position += count
            self._remaining -= count
            if self._on_bytes is not None:
                self._on_bytes(count)

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

    def _refused(self, status: int) -> ZeropullError:
        what = f"blob {self._source.digest} of {self._source.repository}"
        host = self._source.host
        if status in {404, 410}:
            return NotFound(f"registry {host} does not have {what}: push the image again")
        if status in {401, 403}:
            return AccessDenied(f"registry {host} refuses {what} ({status}): check the credentials")
        if status == 416:
            return IntegrityError(
                f"registry {host}: {what} is shorter than {self._source.size:,} bytes"
            )
        return Unavailable(f"registry {host} answers {status} for {what}")
