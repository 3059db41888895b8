"""The callers' side: connections to those who hold blocks, and whom to ask next.

Blocking, for threads. A supplier that lies, stalls or refuses is not asked for a while, longer each
time, and what it did is kept for the report.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from zeropull.backoff import Backoff
from zeropull.delivery.certificates import check_peer, client_context
from zeropull.delivery.wire import (
    BLOCKS_HEADER,
    BLOCKS_PATH,
    FILES_PATH,
    LENGTH,
    MISSING,
    BlockRun,
    BlocksRequest,
    FilesRequest,
)
from zeropull.errors import AccessDenied, IntegrityError, NotFound, Unavailable, ZeropullError

CONNECT_TIMEOUT_S = 5.0
STALL_TIMEOUT_S = 10.0  # no byte for as long: the next supplier is asked
MAX_FILE_BYTES = 2 << 30
IDLE_CONNECTIONS = 8  # kept for each supplier
_TRUST = Backoff(first_s=1.0, limit_s=60.0)


@dataclass(frozen=True, slots=True)
class SupplierAddress:
    """Where a supplier answers, by which certificate it is known, and the token that it takes."""

    host: str
    port: int
    certificate: str  # SHA-256, 64 hex digits
    token: str = field(repr=False)
    is_source: bool = False

    @property
    def name(self) -> str:
        return f"{'source' if self.is_source else 'peer'} {self.host}:{self.port}"


class Supplier:
    """Connections to one supplier, kept alive between requests."""

    def __init__(self, address: SupplierAddress) -> None:
        self.address = address
        self.failures = 0
        self.last_failure = ""
        self.bytes = 0
        self._not_before_s = 0.0
        self._idle: list[http.client.HTTPSConnection] = []
        self._lock = threading.Lock()
        self._context = client_context()

    def is_trusted(self, now_s: float) -> bool:
        """False for a while after a failure. `now_s`: of a monotonic clock."""
        return now_s >= self._not_before_s

    def note_failure(self, reason: str, now_s: float) -> None:
        with self._lock:
            self.failures += 1
            self.last_failure = reason
            self._not_before_s = now_s + _TRUST.after(self.failures)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def files(self, generation: int, names: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """Each name with its content, None when the supplier has no such file. Nothing is verified.

        Raises:
            AccessDenied, NotFound, Unavailable: as the supplier says, or it does not answer.
        """
        request = msgspec.json.encode(FilesRequest(generation, tuple(names)))
        with self._asked(FILES_PATH, request) as answer:
            for name in names:
                (size,) = LENGTH.unpack(self._read(answer, LENGTH.size))
                if size == MISSING:
                    yield name, None
                elif size > MAX_FILE_BYTES:
                    raise Unavailable(f"{self.address.name} sends {name} with {size} bytes")
                else:
                    yield name, bytes(self._read(answer, size))

    def blocks(
        self, generation: int, runs: Sequence[BlockRun], sizes: Iterable[int]
    ) -> Iterator[memoryview]:
        """The blocks of `runs`, one after the other; `sizes` are theirs, in bytes. It may have
        fewer. A view is good until the next one is asked for. Nothing is verified.

        Raises:
            AccessDenied, NotFound, Unavailable: as the supplier says, or it does not answer.
        """
        request = msgspec.json.encode(BlocksRequest(generation, tuple(runs)))
        with self._asked(BLOCKS_PATH, request) as answer:
            try:
                count = int(answer.headers.get(BLOCKS_HEADER, ""))
            except ValueError:
                raise Unavailable(f"{self.address.name} does not say how many blocks") from None
            for _, size in zip(range(count), sizes, strict=False):
                yield self._read(answer, size)

    @contextlib.contextmanager
    def _asked(self, path: str, body: bytes) -> Iterator[http.client.HTTPResponse]:
        headers = {
            "Authorization": f"Bearer {self.address.token}",
            "Content-Type": "application/json",
        }
        connection, answer = self._answered(path, body, headers)
        try:
            if answer.status in (401, 403):
                raise AccessDenied(f"{self.address.name} refuses this node")
            if answer.status == 404:
                raise NotFound(f"{self.address.name} does not have it")
            if answer.status != 200:
                raise Unavailable(f"{self.address.name} answers {answer.status}")
            yield answer
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unavailable(f"{self.address.name} breaks off: {error!r}") from error
        except BaseException:
            connection.close()
            raise
        finally:
            is_read = answer.isclosed()
            answer.close()  # else its socket stays open where the supplier wants to end it
        if is_read:
            with self._lock:
                if len(self._idle) < IDLE_CONNECTIONS:
                    self._idle.append(connection)
                    return
        connection.close()

    def _answered(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        """A kept connection may have been closed by the other side: a new one is tried once."""
        for kept in (True, False):
            connection = self._idle_connection() if kept else None
            if kept and connection is None:
                continue
            try:
                connection = connection or self._connect()
                connection.request("POST", path, body, dict(headers))
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                if connection is not None:
                    connection.close()
                if not kept:
                    raise Unavailable(f"{self.address.name} does not answer: {error!r}") from error
        raise AssertionError("unreachable")

    def _idle_connection(self) -> http.client.HTTPSConnection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _connect(self) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(
            self.address.host, self.address.port, timeout=CONNECT_TIMEOUT_S, context=self._context
        )
        try:
            connection.connect()
            check_peer(connection.sock, self.address.certificate, self.address.name)
        except BaseException:
            connection.close()
            raise
        connection.sock.settimeout(STALL_TIMEOUT_S)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _read(self, answer: http.client.HTTPResponse, size: int) -> memoryview:
        buffer = memoryview(bytearray(size))
        filled = 0
        while filled < size:
            count = answer.readinto(buffer[filled:])
            if not count:
                raise Unavailable(f"{self.address.name} ends after {filled} of {size} bytes")
            filled += count
        self.bytes += size
        return buffer


class Suppliers:
    """Everybody who may have this endpoint's blocks: peers first, the source last."""

    def __init__(self, source: SupplierAddress) -> None:
        self._source = Supplier(source)
        self._peers: dict[str, Supplier] = {}
        self._lock = threading.Lock()
        self._turn = 0

    def set_peers(self, peers: Iterable[SupplierAddress]) -> None:
        """Those that the control plane names now; what is known of the ones that stay is kept."""
        wanted = {peer.name: peer for peer in peers}
        with self._lock:
            gone = [self._peers.pop(name) for name in self._peers.keys() - wanted.keys()]
            for name, address in wanted.items():
                known = self._peers.get(name)
                if known is None or known.address != address:
                    self._peers[name] = Supplier(address)
        for supplier in gone:
            supplier.close()

    def everybody(self) -> list[Supplier]:
        """In the order in which to ask: trusted peers in turn, the source, then the others."""
        with self._lock:
            peers = list(self._peers.values())
            self._turn += 1
            turn = self._turn
        now_s = time.monotonic()
        if peers:
            peers = peers[turn % len(peers) :] + peers[: turn % len(peers)]
        ordered = [*peers, self._source]
        return sorted(ordered, key=lambda supplier: not supplier.is_trusted(now_s))

    def close(self) -> None:
        with self._lock:
            for supplier in (self._source, *self._peers.values()):
                supplier.close()

    def files(self, generation: int, names: Sequence[str]) -> dict[str, bytes]:
        """Every file, from the first supplier that has all. The caller verifies.

        Raises:
            NotFound: nobody has one of them.
            Unavailable: nobody answers.
        """
        failure: ZeropullError = Unavailable("nobody has this generation")
        absent: NotFound | None = None  # says more than that another one failed
        for supplier in self.everybody():
            try:
                found = dict(supplier.files(generation, names))
            except ZeropullError as error:
                supplier.note_failure(error.reason, time.monotonic())
                failure = error
                continue
            missing = [name for name, content in found.items() if content is None]
            if not missing:
                return {name: content for name, content in found.items() if content is not None}
            absent = NotFound(f"{supplier.address.name} does not have {missing[0]}")
        raise absent or failure


def lied(supplier: Supplier, what: str) -> IntegrityError:
    """Note that the supplier sent bytes with another digest than the index names."""
    reason = f"{supplier.address.name} sent wrong bytes for {what}"
    supplier.note_failure(reason, time.monotonic())
    return IntegrityError(reason)
