"""A program that checks every byte it reads: `python reader.py WAY FILE...` prints a digest each.

WAY: read (ordinary reads) or mmap (page faults).
"""

from __future__ import annotations

import hashlib
import mmap
import sys
from pathlib import Path


def content_of(way: str, path: Path) -> bytes:
    if way == "read":
        return path.read_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        return bytes(mapped)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(hashlib.sha256(content_of(sys.argv[1], Path(name))).hexdigest(), flush=True)
