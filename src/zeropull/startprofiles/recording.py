"""Records start profiles: by the kernel's erofs tracepoints where it has them, with their order;
else by mincore(2) over the mounted layers' files, which gives the set.

Both count pages of the *mounted* files: read-ahead in the backing files would inflate them.
Sources: the kernel's Documentation/trace/ftrace.rst and include/trace/events/erofs.h.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zeropull.erofs.reader import MetadataImage
from zeropull.layers.layout import META_FILE
from zeropull.linux import page_cache
from zeropull.linux.tracefs import TraceInstance
from zeropull.startprofiles.profile import (
    PAGE_BYTES,
    PageRun,
    ProfileFile,
    StartProfile,
    first_uses,
)

_EVENTS = ("erofs_readahead", "erofs_read_folio")
_BUFFER_KB = 4096  # for each processor: some 80,000 events; what comes later is left out
_HOLE = 0xFFFFFFFF
_EVENT = re.compile(
    r"erofs_read\w+: dev = \((\d+),(\d+)\), nid = (\d+).*?\b(?:start|index) = (\d+)"
    r"(?:.*?\bnrpages? = (\d+))?"
)


@dataclass(frozen=True, slots=True)
class MountedLayer:
    """A layer and where it is mounted. The profile's layers are in the order of these."""

    chain_id: str
    directory: Path
    mount: Path


@dataclass(frozen=True, slots=True)
class Touch:
    """`pages` pages from page `page` on of the file with the inode number `nid` of a layer."""

    layer: int
    nid: int
    page: int
    pages: int


class StartRecorder:
    """From before the container starts (`begin`) until it is healthy (`finish`). Blocking.

    `name` must be unique on the host; what a crash left under it is removed by the next `begin`.
    `tracefs`: as for `zeropull.linux.tracefs.TraceInstance`.
    """

    def __init__(
        self,
        name: str,
        manifest_digest: str,
        layers: Sequence[MountedLayer],
        *,
        tracefs: Path | None = None,
    ) -> None:
        self._manifest_digest = manifest_digest
        self._layers = layers
        self._instance = TraceInstance(name, tracefs)
        self._traces = False

    def begin(self) -> None:
        """Never fails: without tracefs `finish` uses mincore."""
        with contextlib.suppress(OSError):
            self._instance.create()
            self._set("tracing_on", "0")
            self._set("buffer_size_kb", str(_BUFFER_KB))
            self._set("options/overwrite", "0")
            devices = sorted({layer.mount.stat().st_dev for layer in self._layers})
            wanted = " || ".join(f"dev == {_kernel_device(each)}" for each in devices)
            for event in _EVENTS:
                self._set(f"events/erofs/{event}/filter", wanted)
                self._set(f"events/erofs/{event}/enable", "1")
            self._set("tracing_on", "1")
            self._traces = True
        if not self._traces:
            self.cancel()

    def finish(self) -> StartProfile:
        """Raises OSError or IntegrityError when the layers cannot be read."""
        touches: list[Touch] = []
        if self._traces:
            with contextlib.suppress(OSError):
                self._set("tracing_on", "0")
                touches = list(self._traced())
        self.cancel()
        ordered = bool(touches)
        if not touches:
            touches = list(resident_pages(self._layers))
        files, runs = place_in_files(self._layers, touches)
        return StartProfile(
            self._manifest_digest,
            tuple(layer.chain_id for layer in self._layers),
            files,
            tuple(first_uses(runs)),
            ordered,
        )

    def cancel(self) -> None:
        """Idempotent; also after `finish`."""
        self._instance.remove()

    def _traced(self) -> Iterator[Touch]:
        places = {layer.mount.stat().st_dev: n for n, layer in enumerate(self._layers)}
        with (self._instance.folder / "trace").open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                found = _EVENT.search(line)
                if found is None:
                    continue
                number = places.get(os.makedev(int(found[1]), int(found[2])))
                if number is not None:
                    yield Touch(number, int(found[3]), int(found[4]), int(found[5] or 1))

    def _set(self, name: str, value: str) -> None:
        (self._instance.folder / name).write_text(value)


def resident_pages(layers: Sequence[MountedLayer]) -> Iterator[Touch]:
    """What the page cache holds of the mounted layers' files now, by mincore."""
    for number, layer in enumerate(layers):
        seen: set[int] = set()
        for path, nid in _files(layer.mount):
            if nid not in seen:
                seen.add(nid)
                for page, pages in page_cache.resident_pages(path):
                    yield Touch(number, nid, page, pages)


def place_in_files(
    layers: Sequence[MountedLayer], touches: Sequence[Touch]
) -> tuple[tuple[ProfileFile, ...], list[PageRun]]:
    """The touches as runs of pages of named files."""
    files: dict[tuple[int, int], int] = {}
    places: list[ProfileFile] = []
    runs: list[PageRun] = []
    with contextlib.ExitStack() as stack:
        images = [stack.enter_context(_metadata(layer.directory)) for layer in layers]
        for number, image in enumerate(images):
            paths = _paths(image, {touch.nid for touch in touches if touch.layer == number})
            for nid, path in paths.items():
                files[number, nid] = len(places)
                places.append(ProfileFile(number, path))
        for touch in touches:
            file = files.get((touch.layer, touch.nid))
            if file is not None:
                runs += _in_data_file(images[touch.layer], file, touch)
    return tuple(places), runs


def _paths(image: MetadataImage, nids: set[int]) -> dict[int, bytes]:
    """Paths of regular files by their nids; of several links to one file the first."""
    found: dict[int, bytes] = {}
    waiting = [(b"", image.root)]
    while waiting and len(found) < len(nids):
        path, directory = waiting.pop()
        for name, nid in image.entries(directory):
            inode = image.inode(nid)
            if inode.is_directory:
                waiting.append((path + name + b"/", inode))
            elif nid in nids and stat.S_ISREG(inode.mode):
                found.setdefault(nid, path + name)
    return found


@contextlib.contextmanager
def _metadata(directory: Path) -> Iterator[MetadataImage]:
    with (directory / META_FILE).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    yield MetadataImage(mapped)


def _files(directory: Path) -> Iterator[tuple[bytes, int]]:
    """Regular files with content, and their nids, which EROFS shows as inode numbers."""
    for folder, _, names in os.walk(os.fsencode(directory)):
        for name in names:
            path = folder + b"/" + name
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_size:
                yield path, status.st_ino


def _in_data_file(image: MetadataImage, file: int, touch: Touch) -> Iterator[PageRun]:
    """Runs that lie together in the data file, too; holes and what lies behind the end of the file
    are left out."""
    inode = image.inode(touch.nid)
    bits, chunks = image.chunks(inode)
    page, end = touch.page, min(touch.page + touch.pages, -(-inode.size // PAGE_BYTES))
    per_chunk = 1 << (bits - 12)
    while page < end:
        index, inside = divmod(page, per_chunk)
        count = min(end - page, per_chunk - inside)
        if index < len(chunks) and chunks[index] != _HOLE:
            yield PageRun(file, page, count, chunks[index] + inside)
        page += count


def _kernel_device(device: int) -> int:
    """dev_t as the kernel has it inside: 12 bits major, 20 bits minor."""
    return os.major(device) << 20 | os.minor(device)
