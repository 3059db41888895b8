"""Start profiles: which pages of an image's files a container read until it was healthy.

A profile is advice: it decides what is read ahead, never what is run, so nothing vouches for it but
its bounds. Runs of pages are kept in the order of their first use, by where they lie in the mounted
files, which is where they are read ahead, and in the layers' data files, where they are verified.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zeropull.errors import IntegrityError, NotFound
from zeropull.layers.layout import BLOCK_BYTES

PAGE_BYTES = 4096
MAX_PAGE = 1 << 40
MAX_RUNS = 200_000
MAX_DOCUMENT_BYTES = 8 << 20
_FORMAT = 2


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """A file of the layer with the index `layer` (0 = the lowest); `path` is relative to it."""

    layer: int
    path: bytes


@dataclass(frozen=True, slots=True)
class PageRun:
    """`pages` pages of 4 KiB from page `page` of the profile's file number `file` on, which lie
    from page `start` of its layer's data file on."""

    file: int
    page: int
    pages: int
    start: int


@dataclass(frozen=True, slots=True)
class StartProfile:
    """`ordered`: the runs come in the order of first use (tracepoints), not only as a set."""

    manifest_digest: str
    chain_ids: tuple[str, ...]
    files: tuple[ProfileFile, ...]
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
            if self.files[run.file].layer == layer:
                last = (run.start + run.pages - 1) // per_block
                touched.update(dict.fromkeys(range(run.start // per_block, last + 1)))
        return list(touched)


def first_uses(touches: Iterable[PageRun]) -> list[PageRun]:
    """The touches without the pages that came before; neighbours in a row become one run."""
    seen: dict[int, bytearray] = {}
    runs: list[PageRun] = []
    for touch in touches:
        known = seen.setdefault(touch.file, bytearray())
        end = touch.page + touch.pages
        if len(known) < end:
            known.extend(bytes(end - len(known)))
        for page, stop in _gaps(known, touch.page, end):
            known[page:stop] = b"\1" * (stop - page)
            run = PageRun(touch.file, page, stop - page, touch.start + page - touch.page)
            if runs and _follows(runs[-1], run):
                runs[-1] = dataclasses.replace(runs[-1], pages=runs[-1].pages + run.pages)
            else:
                runs.append(run)
    return runs[:MAX_RUNS]


def _follows(last: PageRun, run: PageRun) -> bool:
    return (last.file, last.page + last.pages, last.start + last.pages) == (
        run.file, run.page, run.start
    )  # fmt: skip


def encode_profile(profile: StartProfile) -> bytes:
    return msgspec.json.encode(
        _Document(
            profile.format,
            profile.manifest_digest,
            list(profile.chain_ids),
            profile.ordered,
            [(file.layer, file.path) for file in profile.files],
            [(run.file, run.page, run.pages, run.start) for run in profile.runs],
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
    layers, files = len(document.chain_ids), len(document.files)
    valid = all(
        0 <= file < files and 0 <= page <= MAX_PAGE and 0 < pages <= MAX_PAGE
        and 0 <= start <= MAX_PAGE for file, page, pages, start in document.runs
    ) and all(0 <= layer < layers for layer, _ in document.files)  # fmt: skip
    if document.format != _FORMAT or not valid or len(document.runs) > MAX_RUNS:
        raise IntegrityError("start profile: another format, or runs that cannot be")
    return StartProfile(
        document.manifest_digest,
        tuple(document.chain_ids),
        tuple(ProfileFile(*file) for file in document.files),
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
    files: list[tuple[int, bytes]]
    runs: list[tuple[int, int, int, int]]


def _gaps(known: bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Stretches of zeros in known[start:end]."""
    while (first := known.find(0, start, end)) >= 0:
        after = known.find(1, first, end)
        yield first, end if after < 0 else after
        if after < 0:
            return
        start = after
