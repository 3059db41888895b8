"""Prints the rotated log files of an endpoint's containers, and goes on as they grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

POLL_S = 0.3
REFRESH_S = 3.0  # how often new copies are looked for


def follow_logs(copies: Callable[[], list[dict[str, Any]]], out: TextIO, *, follow: bool) -> None:
    """Print everything that is there, oldest file first; with `follow` until interrupted."""
    offsets: dict[tuple[int, int], int] = {}  # by device and inode: a rotation renames files
    folders: list[tuple[str, Path]] = []
    asked_s = -REFRESH_S
    while True:
        if time.monotonic() - asked_s >= REFRESH_S:
            folders = [(c["copy_id"], Path(c["folder"])) for c in copies()]
            asked_s = time.monotonic()
        for copy_id, folder in folders:
            for path in _files(folder):
                _print_new(path, copy_id, offsets, out)
        out.flush()
        if not follow:
            return
        time.sleep(POLL_S)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [(p.stat().st_mtime, p) for p in folder.iterdir() if p.is_file()]
    return [path for _, path in sorted(found)]


def _print_new(path: Path, copy_id: str, offsets: dict[tuple[int, int], int], out: TextIO) -> None:
    try:
        with path.open("rb") as file:
            info = path.stat()
            key = (info.st_dev, info.st_ino)
            file.seek(offsets.get(key, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                offsets[key] = offsets.get(key, 0) + len(line)
                out.write(f"{copy_id}  {line.decode(errors='replace')}")
    except FileNotFoundError:
        return
