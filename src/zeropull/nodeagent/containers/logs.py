"""A copy's stdout and stderr: N/logs/<copy_id>/current.log, then .1 and .2, bounded in size; those
of the node's daemons, N/logs/<role>.log, likewise.

A program of its own writes and rotates a copy's log (`log_writer`). What a daemon appends to by
itself is rotated here, in place: the older part is copied aside and then cut off the front of the
file with FALLOC_FL_COLLAPSE_RANGE, which loses no byte that is written meanwhile. Where the file
system cannot do that (btrfs, tmpfs), what came after that part is copied too and the file is
truncated: only what is written in between is lost. Of copies that are gone, only the newest logs
stay.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path

from zeropull.linux.files import cut_front, replace_file
from zeropull.linux.removal import try_remove_tree
from zeropull.nodeagent.containers import log_writer
from zeropull.nodeagent.containers.log_writer import CURRENT, KEPT, MAX_BYTES
from zeropull.telemetry import get_logger

KEPT_COPIES = 20  # logs of copies that are gone: as many, and together no more bytes than these
KEPT_COPIES_BYTES = 100 << 20
_BLOCK = 4096

log = get_logger(__name__)


def log_file(logs_dir: Path, copy_id: str) -> Path:
    return logs_dir / copy_id / CURRENT


def make_log_file(path: Path) -> None:
    """Make it, and its folder, so that a reader finds an empty log before the first line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o640)


def install_log_writer(folder: Path) -> Path:
    """Make the program that shims start for their containers; returns it.

    It is a file of its own that starts without the packages' import paths. A running one keeps the
    file that it was started from.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    program = folder / "log-writer"
    source = Path(log_writer.__file__).read_text()
    interpreter = Path(sys.executable).resolve()  # without the virtual environment's look-ups
    replace_file(program, f"#!{interpreter} -IS\n{source}", mode=0o700, is_durable=False)
    return program


def rotate(path: Path, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> bool:
    """Rotate when the file has grown past `max_bytes`; True when it was done."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    if size <= max_bytes:
        return False
    block = os.statvfs(path).f_bsize or _BLOCK
    whole = (size - 1) // block * block  # the range must end before the end of the file
    if whole <= 0:
        return False
    aside = path.with_name(f".{path.name}.rotating")
    with path.open("rb") as source, aside.open("wb") as target:
        remaining = whole
        while remaining and (chunk := source.read(min(1 << 20, remaining))):
            target.write(chunk)
            remaining -= len(chunk)
    for number in range(kept - 1, 1, -1):
        older = path.with_name(f"{path.name}.{number - 1}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number}"))
    aside.replace(path.with_name(f"{path.name}.1"))
    _cut_front(path, whole)
    return True


def rotate_daemons(logs_dir: Path, *, max_bytes: int = MAX_BYTES) -> None:
    """The same for the node's daemons, which append to logs/<role>.log."""
    for path in sorted(logs_dir.glob("*.log")):
        rotate(path, max_bytes=max_bytes)


def prune(
    logs_dir: Path,
    living: Collection[str],
    *,
    kept: int = KEPT_COPIES,
    max_bytes: int = KEPT_COPIES_BYTES,
) -> list[str]:
    """Remove the oldest logs of copies that are not `living`; returns their copy IDs."""
    found = []
    for folder in logs_dir.iterdir():
        if folder.name not in living and folder.is_dir():
            files = [path.stat() for path in folder.iterdir()]
            newest_s = max((each.st_mtime for each in files), default=0.0)
            found.append((newest_s, sum(each.st_size for each in files), folder))
    gone, total = [], 0
    for number, (_, size, folder) in enumerate(sorted(found, reverse=True)):
        total += size
        if number >= kept or total > max_bytes:
            try_remove_tree(folder)
            gone.append(folder.name)
    return gone


def keep_bounded(logs_dir: Path, copy_ids: frozenset[str]) -> None:
    """Rotate the logs of these copies and of the daemons; remove those of copies that are long
    gone. What cannot be done now is in the log, and is tried the next time. Blocking."""
    for copy_id in copy_ids:
        try:
            rotate(log_file(logs_dir, copy_id))
        except OSError as error:
            log.warning("log cannot be rotated", copy_id=copy_id, reason=str(error))
    try:
        rotate_daemons(logs_dir)
        prune(logs_dir, copy_ids)
    except OSError as error:
        log.warning("logs cannot be rotated or removed", reason=str(error))


def last_lines(path: Path, *, lines: int = 10, max_bytes: int = 2000) -> str:
    """The end of the log for a failure message, bounded and printable."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            text = file.read(max_bytes).decode(errors="replace")
    except FileNotFoundError:
        return ""
    printable = "".join(each if each.isprintable() or each == "\n" else " " for each in text)
    return "\n".join([line for line in printable.splitlines() if line.strip()][-lines:])


def _cut_front(path: Path, length: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        if not cut_front(descriptor, length):
            with path.with_name(f"{path.name}.1").open("ab") as rotated:
                while chunk := os.pread(descriptor, 1 << 20, length):
                    rotated.write(chunk)
                    rotated.flush()
                    length += len(chunk)
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
