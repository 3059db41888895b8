"""Prints the rotated log files of an endpoint's containers, and goes on as they grow.

A rotation (`zeropull.nodeagent.containers.log_writer`) renames current.log to current.log.1, and
the .1 before it to .2. Files that are new since the last look are therefore the front of what
current.log was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from zeropull.admin.messages import LogFolder
from zeropull.cli.plain_text import escaped
from zeropull.errors import Unavailable
from zeropull.nodeagent.containers.log_writer import CURRENT

POLL_S = 0.3
REFRESH_S = 3.0  # how often new copies are looked for
MAX_LINE_BYTES = 1 << 20  # a longer one is printed in parts
LOOKS_AT_ODD_FILES = 10  # then they are as they are: two parts may begin alike
COMPARED_BYTES = 4096

_Identity = tuple[int, int, int]  # inode, time of change, size: a rotation renames files


def follow_logs(
    folders: Callable[[], Iterable[LogFolder]],
    out: TextIO,
    *,
    follow: bool,
    poll_s: float = POLL_S,
    refresh_s: float = REFRESH_S,
) -> None:
    """Print everything that is there, oldest file first; with `follow` until interrupted, also
    while the control plane is away.

    A terminal gets no control characters of containers: they could rewrite what it shows. A file
    or a pipe gets every line as it is.
    """
    is_terminal = out.isatty()
    logs: dict[tuple[str, Path], CopyLog] = {}
    asked_s = -refresh_s
    while True:
        if time.monotonic() - asked_s >= refresh_s:
            asked_s = time.monotonic()
            try:
                found = {(each.copy_id, Path(each.folder)) for each in folders()}
            except Unavailable:
                if not (follow and logs):
                    raise
            else:
                logs = {key: logs.get(key) or CopyLog(key[1]) for key in sorted(found)}
        for (copy_id, _), log in logs.items():
            for line in log.new_lines(last=not follow):
                text = line.decode(errors="replace")
                out.write(f"{copy_id}  {escaped(text) if is_terminal else text}\n")
        out.flush()
        if not follow:
            return
        time.sleep(poll_s)


@dataclass
class CopyLog:
    """What has been read of the log of one copy."""

    folder: Path
    _rotated: tuple[_Identity, ...] = ()
    _read_bytes: int = 0  # of current.log
    _rest: bytes = b""  # the beginning of a line whose end is not there yet
    _odd_looks: int = 0  # in a row

    def new_lines(self, *, last: bool = False) -> list[bytes]:
        """Whole lines that came since the last look; with `last` also one that has no end yet."""
        try:
            content = self._new_content()
        except FileNotFoundError:  # a file was renamed meanwhile, or the copy's instance is gone
            content = b""
        *lines, rest = (self._rest + content).split(b"\n")
        if rest and (last or len(rest) > MAX_LINE_BYTES):
            lines, rest = [*lines, rest], b""
        self._rest = rest
        return lines

    def _new_content(self) -> bytes:
        """b"" while a rotation is under way: the next look finds it done."""
        rotated, current = _rotated_files(self.folder), self.folder / CURRENT
        new = [path for path, identity in rotated if identity not in self._rotated]
        if new and _begin_alike(new[-1], current) and self._is_odd():
            return b""
        sizes = [path.stat().st_size for path in (*new, current)]
        unread = sum(sizes) - self._read_bytes
        if unread < 0 and self._is_odd():
            return b""
        skipped = self._read_bytes if unread >= 0 else 0  # somebody has truncated it
        parts = []
        for path, size in zip((*new, current), sizes, strict=True):
            with path.open("rb") as file:
                file.seek(min(skipped, size))
                parts.append(file.read(max(0, size - skipped)))
            skipped = max(0, skipped - size)
        if _rotated_files(self.folder) != rotated:
            return b""
        self._rotated = tuple(identity for _, identity in rotated)
        self._read_bytes, self._odd_looks = sizes[-1], 0
        return b"".join(parts)

    def _is_odd(self) -> bool:
        """The files do not fit what was read: a rotation is under way, unless that lasts."""
        self._odd_looks += 1
        return self._odd_looks < LOOKS_AT_ODD_FILES


def _rotated_files(folder: Path) -> list[tuple[Path, _Identity]]:
    """Oldest first."""
    found = [p for p in folder.glob(f"{CURRENT}.*") if p.suffix[1:].isdigit()]
    found.sort(key=lambda path: int(path.suffix[1:]), reverse=True)
    stats = [(path, path.stat()) for path in found]
    return [(path, (s.st_ino, s.st_mtime_ns, s.st_size)) for path, s in stats]


def _begin_alike(rotated: Path, current: Path) -> bool:
    """The copied part has not been cut off yet."""
    if current.stat().st_size < rotated.stat().st_size:
        return False
    with rotated.open("rb") as first, current.open("rb") as second:
        return first.read(COMPARED_BYTES) == second.read(COMPARED_BYTES)
