"""Writes a container's stdout and stderr to rotated files: a program of its own, one per container.

containerd's shim starts it (`binary://` of containerd's task API; containerd's
core/runtime/v2/README.md, "Logging drivers"): stdout is on descriptor 3, stderr on 4, and closing 5
says that it is ready. It belongs to the shim, so that a container keeps logging when the node agent
and containerd are killed. It imports nothing but the standard library's smallest modules, since
every start of a container waits for its start.

What is on disk is bounded in every moment: a file is full before the next one is begun. A container
that writes faster than `BYTES_PER_S` has to wait. What a full disk does not take is dropped: a log
must never stop a container.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

CURRENT = "current.log"
MAX_BYTES = 10 << 20  # of one file
KEPT = 3  # files in all, the current one included
BYTES_PER_S = 32 << 20  # in the long run; a file is full after a third of a second
LAST_WORDS_S = 2.0  # to read what is in the pipes when the shim wants us to end
_READ_BYTES = 1 << 16
_STDOUT, _STDERR, _READY = 3, 4, 5


class LogWriter:
    """Appends to FOLDER/current.log and rotates it to .1, .2 by renaming."""

    def __init__(self, folder: str, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        self._path = f"{folder}/{CURRENT}"
        self._max_bytes = max_bytes
        self._kept = kept
        self._file = -1
        self._size = 0

    def write(self, data: memoryview) -> None:
        """Append; drop what the disk does not take."""
        while data:
            if self._file < 0 and not self._open():
                return
            if self._size >= self._max_bytes:
                if not self._rotate():
                    return
                continue
            try:
                written = os.write(self._file, data[: self._max_bytes - self._size])
            except OSError:
                return
            self._size += written
            data = data[written:]

    def _open(self) -> bool:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = os.open(self._path, flags, 0o640)
            self._size = os.fstat(self._file).st_size
        except OSError:
            return False
        return True

    def _rotate(self) -> bool:
        os.close(self._file)
        self._file = -1
        try:
            for number in range(self._kept - 1, 0, -1):
                newer = f"{self._path}.{number - 1}" if number > 1 else self._path
                with suppress(FileNotFoundError):
                    os.replace(newer, f"{self._path}.{number}")  # noqa: PTH105 - no pathlib here
        except OSError:
            return False
        return True


class Pace:
    """Says how long to wait so that no more than so many bytes per second pass in the long run."""

    def __init__(self, bytes_per_s: float, now_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = now_s  # when all that has passed is paid for

    def wait_s(self, count: int, now_s: float) -> float:
        """After `count` bytes; up to a second's bytes may come at once."""
        self._free_s = max(self._free_s, now_s - 1.0) + count / self._bytes_per_s
        return max(0.0, self._free_s - now_s)


def copy(sources: list[int], writer: LogWriter, pace: Pace, woken: int) -> None:
    """Until every source has ended. Once `woken` can be read, only what is in the sources already
    is written, for `LAST_WORDS_S` at most."""
    waiting = select.poll()
    for each in (*sources, woken):
        waiting.register(each, select.POLLIN)
    open_sources = set(sources)
    buffer = memoryview(bytearray(_READ_BYTES))
    until_s: float | None = None
    while open_sources:
        ready = [source for source, _ in waiting.poll(None if until_s is None else 0)]
        if woken in ready:
            waiting.unregister(woken)
            until_s = time.monotonic() + LAST_WORDS_S
        elif until_s is not None and (not ready or time.monotonic() > until_s):
            return
        for source in open_sources.intersection(ready):
            count = os.readv(source, [buffer])
            if count == 0:
                waiting.unregister(source)
                open_sources.discard(source)
                continue
            writer.write(buffer[:count])
            pause_s = pace.wait_s(count, time.monotonic())
            if pause_s > 0 and until_s is None:
                time.sleep(pause_s)


def main() -> int:
    # The shim passes the URI's query as words: the key, then its value.
    folder = sys.argv[sys.argv.index("folder") + 1]
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.close(_READY)
    copy([_STDOUT, _STDERR], LogWriter(folder), Pace(BYTES_PER_S, time.monotonic()), woken)
    return 0


if __name__ == "__main__":
    sys.exit(main())
