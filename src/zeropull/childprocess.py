"""A child process that shares memory with its parent: one of our own modules, run with `-m`.

Between the two there are

    input       bytes from the parent, in slots of shared memory
    output      bytes from the child, in other slots
    messages    everything else, in packets of at most 64 KiB

each with a socket pair of its own (SOCK_SEQPACKET, unix(7)). A writer tells by its socket how many
bytes are in the next slot, and the reader tells by the same socket when it is done with one. When
either process dies, the other one reads the sockets' end.

The parent uses `ChildProcess`, the child `ParentProcess`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zeropull.errors import Unavailable

_MESSAGE_MAX_BYTES = 64 << 10
_SIZE = struct.Struct("<I")  # bytes in the next slot; 0 = nothing follows
_DONE = b"\0"  # with a slot


@dataclass(frozen=True, slots=True)
class _Slots:
    """`count` slots of `size` bytes, from byte `start` of the memory on."""

    start: int
    count: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.count * self.size


# Enough for either side to go on while the other one does something else for some 20 ms, and small
# enough for the processor's caches. Memory that nobody touches costs nothing.
_INPUT = _Slots(0, 8, 512 << 10)
_OUTPUT = _Slots(_INPUT.end, 12, 1 << 20)


class OtherProcessGone(Exception):
    """It has ended, or closed this stream. What it said before is still in `messages`."""


class SlotWriter:
    """Fills slots that the other process reads. For one thread."""

    def __init__(self, connection: socket.socket, memory: memoryview, slots: _Slots) -> None:
        self._connection = connection
        self._memory = memory
        self._slots = slots
        self._at = 0
        self._free = slots.count

    def write(self, data: memoryview | bytes) -> None:
        """Hand over; waits for room. `data` may be reused afterwards."""
        view = memoryview(data)
        while view:
            room = self.room()
            piece, view = view[: len(room)], view[len(room) :]
            room[: len(piece)] = piece
            self.commit(len(piece))

    def room(self) -> memoryview:
        """The slot that is filled next; waits until the other process is done with it."""
        if not self._free:
            _receive(self._connection, len(_DONE))
            self._free = 1
        start = self._slots.start + self._at * self._slots.size
        return self._memory[start : start + self._slots.size]

    def commit(self, count: int) -> None:
        """The first `count` bytes of `room()` are filled, at least one."""
        _send(self._connection, _SIZE.pack(count))
        self._free -= 1
        self._at = (self._at + 1) % self._slots.count

    def end(self) -> None:
        """Everything is written. Another stream of bytes may follow."""
        _send(self._connection, _SIZE.pack(0))

    def close(self) -> None:
        """The reader finds the other process gone."""
        self._connection.close()


class SlotReader:
    """Reads what a `SlotWriter` of the other process fills. For one thread."""

    def __init__(self, connection: socket.socket, memory: memoryview, slots: _Slots) -> None:
        self._connection = connection
        self._memory = memory
        self._slots = slots
        self._at = 0
        self._holds_one = False

    def read(self) -> memoryview:
        """The next bytes, which stand until the next call; none at the end."""
        if self._holds_one:
            self._holds_one = False
            with contextlib.suppress(OtherProcessGone):  # it has written everything
                _send(self._connection, _DONE)
        (count,) = _SIZE.unpack(_receive(self._connection, _SIZE.size))
        if not count:
            return self._memory[:0]
        start = self._slots.start + self._at * self._slots.size
        self._at = (self._at + 1) % self._slots.count
        self._holds_one = True
        return self._memory[start : start + count]

    def __iter__(self) -> Iterator[memoryview]:
        """Until the end; each view stands until the next one is asked for."""
        while part := self.read():
            yield part


class Messages:
    """Packets of bytes, whose meaning is the callers'."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, packet: bytes) -> None:
        _send(self._connection, packet)

    def receive(self) -> bytes:
        return _receive(self._connection, _MESSAGE_MAX_BYTES)


class ChildProcess:
    """Runs `module` with `arguments`; `close`, once, at the end. `work` is for errors: "inflating".

    Its methods and streams raise `OtherProcessGone` when it has ended; `gone` says why it has.

    Raises:
        Unavailable: no process can be started.
    """

    def __init__(self, module: str, arguments: Sequence[str] = (), *, work: str) -> None:
        self._work = work
        self._killed = threading.Event()
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            try:
                shared = os.memfd_create(module)
                theirs.callback(os.close, shared)
                os.ftruncate(shared, _OUTPUT.end)
                memory = memoryview(mmap.mmap(shared, _OUTPUT.end))
                pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
                sockets = [ours.enter_context(mine) for mine, _ in pairs]
                passed = [shared, *(theirs.enter_context(other).fileno() for _, other in pairs)]
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module, *map(str, passed), *arguments],
                    stdin=subprocess.DEVNULL,
                    pass_fds=passed,
                    cwd="/",
                )
            except OSError as error:
                raise Unavailable(f"no process for {work} can be started: {error}") from error
            self._sockets = ours.pop_all()
        self.input = SlotWriter(sockets[0], memory, _INPUT)
        self.output = SlotReader(sockets[1], memory, _OUTPUT)
        self.messages = Messages(sockets[2])

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_killed(self) -> bool:
        """By `kill`."""
        return self._killed.is_set()

    def kill(self) -> None:
        """End it now: threads that wait for it find it gone. From any thread."""
        self._killed.set()
        self._process.kill()

    def close(self) -> None:
        """End it, once no other thread waits for it any more."""
        self.kill()
        self._process.wait()
        self._sockets.close()

    def gone(self) -> Unavailable:
        """Why it has gone: it was killed by `kill`, or ended by itself."""
        if self.is_killed:
            return Unavailable(f"{self._work} was stopped")
        status = self._process.wait()
        return Unavailable(f"the process for {self._work} ended with status {status}")


class ParentProcess:
    """The other end of a `ChildProcess`, in the child. `arguments` are those it was given."""

    def __init__(self, argv: Sequence[str]) -> None:
        shared, *numbers = map(int, argv[1:5])
        memory = memoryview(mmap.mmap(shared, _OUTPUT.end))
        sockets = [socket.socket(fileno=number) for number in numbers]
        self.input = SlotReader(sockets[0], memory, _INPUT)
        self.output = SlotWriter(sockets[1], memory, _OUTPUT)
        self.messages = Messages(sockets[2])
        self.arguments = argv[5:]


def _send(connection: socket.socket, packet: bytes) -> None:
    try:
        connection.send(packet)
    except ConnectionError as error:
        raise OtherProcessGone from error


def _receive(connection: socket.socket, size: int) -> bytes:
    try:
        packet = connection.recv(size)
    except ConnectionResetError:
        # It ended with packets unread. The kernel says so once, before what it has sent itself.
        packet = connection.recv(size)
    if not packet:
        raise OtherProcessGone
    return packet
