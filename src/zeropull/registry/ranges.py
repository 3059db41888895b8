"""Fills buffers with byte ranges of one blob, however often connections break off."""

from __future__ import annotations

import time
from collections.abc import Callable

from zeropull.errors import AccessDenied, IntegrityError, NotFound, Unavailable
from zeropull.registry.auth import Authorizer
from zeropull.registry.blob_connection import BlobConnection
from zeropull.registry.connecting import RateFloor
from zeropull.registry.source import BlobSource

# Waits before the next try; a try that brought bytes, and not too slowly, starts the row again.
_RETRY_DELAYS_S = (0.0, 0.2, 0.5, 1.0, 2.0, 4.0)
_MAX_RETRY_AFTER_S = 60.0
# However many tries bring something: one buffer is full within this, or given up.
_FILL_S = 300.0
_FILL_BYTES_PER_S = 2048.0


class RangeReader:
    """One connection at a time: to the blob's source, and to the others when that one fails."""

    def __init__(
        self,
        source: BlobSource,
        authorizer_of: Callable[[BlobSource], Authorizer],
        *,
        pause: Callable[[float], bool],
        on_open: Callable[[bool], None],
        on_bytes: Callable[[int], None] | None,
        floor: RateFloor | None = None,
    ) -> None:
        """`pause(seconds)` waits, and returns True as soon as reading should stop. `on_open` is
        that of `BlobConnection`."""
        self._digest = source.digest
        self._pause = pause
        self._waiting = [source, *source.others][::-1]
        self._authorizer_of = authorizer_of
        self._on_open = on_open
        self._on_bytes = on_bytes or (lambda count: None)
        self._floor = floor or RateFloor()
        self._blob = self._open_next()

    def fill(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the blob's bytes from `offset` on, resuming where it broke off.

        Raises:
            Unavailable: the last of several tries that brought nothing, or too slowly; or stopped.
            NotFound, AccessDenied, IntegrityError: at once, when no other source is left.
        """
        done = failures = began_at = 0
        began_s = time.monotonic()
        deadline_s = time.monotonic() + _FILL_S + len(view) / _FILL_BYTES_PER_S
        while done < len(view):
            try:
                done += self._blob.receive(view[done:], offset + done)
            except Unavailable as error:
                self._blob.close()
                took_s = time.monotonic() - began_s
                if done > began_at and done - began_at >= self._floor.bytes_per_s * took_s:
                    failures = 0
                if failures >= len(_RETRY_DELAYS_S) or time.monotonic() > deadline_s:
                    if not self._go_elsewhere():
                        raise
                    failures = 0
                    continue
                later_s = min(error.retry_after_s or 0.0, _MAX_RETRY_AFTER_S)
                if self._pause(max(_RETRY_DELAYS_S[failures], later_s)):
                    raise
                failures += 1
                began_at, began_s = done, time.monotonic()
            except (NotFound, AccessDenied, IntegrityError):
                self._blob.close()
                if not self._go_elsewhere():
                    raise
            if self._pause(0):
                raise Unavailable(f"reading {self._digest} was stopped")

    def close(self) -> None:
        """Let the connection go; a receive that waits in another thread returns."""
        self._blob.close()

    def _go_elsewhere(self) -> bool:
        if not self._waiting:
            return False
        self._blob = self._open_next()
        return True

    def _open_next(self) -> BlobConnection:
        source = self._waiting.pop()
        return BlobConnection(
            source,
            self._authorizer_of(source),
            is_stopped=lambda: self._pause(0),
            on_open=self._on_open,
            on_bytes=self._on_bytes,
            floor=self._floor,
        )
