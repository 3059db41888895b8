"""Start profiles: which parts of an image's data files a container read until it was healthy.

A profile is advice: it decides what is read ahead, never what is run, so nothing vouches for it but
its bounds. Runs of pages are kept in the order of their first use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zeropull.errors import IntegrityError, NotFound
from zeropull.imagecache.layout import BLOCK_BYTES

PAGE_BYTES = 4096
MAX_RUNS = 200_000
MAX_DOCUMENT_BYTES = 8 << 20
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class PageRun:
    """`pages` pages of 4 KiB from page `start` on, in the data file of the layer with the index
    `layer` (0 = the lowest)."""

    layer: int
    start: int
    pages: int


@dataclass(frozen=True, slots=True)
class StartProfile:
    """`ordered`: the runs come in the order of first use (tracepoints), not only as a set."""

    manifest_digest: str
    chain_ids: tuple[str, ...]
    runs: tuple[PageRun, ...]
    ordered: bool
    format: int = _FORMAT

    @property
    def size_bytes(self) -> int:
        """Bytes of the mounted files that were read."""
        return sum(run.pages for run in self.runs) * PAGE_BYTES

    def blocks(self, layer: int) -> list[int]:
        """The verifiable blocks that the runs of one layer touch, in order of first use."""
        per_block = BLOCK_BYTES // PAGE_BYTES
        touched: dict[int, None] = {}
        for run in self.runs:
            if run.layer == layer:
                last = (run.start + run.pages - 1) // per_block
                touched.update(dict.fromkeys(range(run.start // per_block, last + 1)))
        return list(touched)


def first_uses(touches: Iterable[PageRun]) -> list[PageRun]:
    """The touches without the pages that came before; neighbours in a row become one run."""
    seen: dict[int, bytearray] = {}
    runs: list[PageRun] = []
    for touch in touches:
        known = seen.setdefault(touch.layer, bytearray())
        end = touch.start + touch.pages
        if len(known) < end:
            known.extend(bytes(end - len(known)))
        for start, stop in _gaps(known, touch.start, end):
            known[start:stop] = b"\1" * (stop - start)
            last = runs[-1] if runs else None
            if last and last.layer == touch.layer and last.start + last.pages == start:
                runs[-1] = PageRun(last.layer, last.start, last.pages + stop - start)
            else:
                runs.append(PageRun(touch.layer, start, stop - start))
    return runs[:MAX_RUNS]


def encode_profile(profile: StartProfile) -> bytes:
    runs = [(run.layer, run.start, run.pages) for run in profile.runs]
    return msgspec.json.encode(
        _Document(
            profile.format, profile.manifest_digest, list(profile.chain_ids), profile.ordered, runs
        )
    )


def decode_profile(content: bytes) -> StartProfile:
    """Raises:
    IntegrityError: it is no profile, or beyond the bounds.
    """
    try:
        document = msgspec.json.decode(content, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise IntegrityError(f"start profile: {error}") from error
    layers = len(document.chain_ids)
    valid = all(
        0 <= layer < layers and start >= 0 and pages > 0 for layer, start, pages in document.runs
    )
    if document.format != _FORMAT or not valid or len(document.runs) > MAX_RUNS:
        raise IntegrityError("start profile: another format, or runs that cannot be")
    return StartProfile(
        document.manifest_digest,
        tuple(document.chain_ids),
        tuple(PageRun(*run) for run in document.runs),
        document.ordered,
    )


def read_profile(path: Path) -> StartProfile:
    """Raises:
    NotFound: there is none.
    IntegrityError: it is no profile, or beyond the bounds.
    """
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise IntegrityError(f"{path} is larger than {MAX_DOCUMENT_BYTES} bytes")
        return decode_profile(path.read_bytes())
    except OSError as error:
        raise NotFound(f"start profile {path}: {error.strerror}") from error


class _Document(msgspec.Struct, frozen=True):
    format: int
    manifest_digest: str
    chain_ids: list[str]
    ordered: bool
    runs: list[tuple[int, int, int]]


def _gaps(known: bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Stretches of zeros in known[start:end]."""
    while (first := known.find(0, start, end)) >= 0:
        after = known.find(1, first, end)
        yield first, end if after < 0 else after
        if after < 0:
            return
        start = after
