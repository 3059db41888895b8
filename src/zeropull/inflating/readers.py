"""What inflates: readers of gzip and zstd over a source of compressed bytes."""

from __future__ import annotations

import gzip
import zlib
from abc import ABC, abstractmethod
from typing import Any, Protocol, cast

from isal import isal_zlib
from isal.igzip_lib import IsalError

INPUT_BYTES = 512 << 10
HEAD_BYTES = 4
# What zstd --long=28 asks for. Four layers at once take a gigabyte then; containerd takes 512 MiB.
_ZSTD_WINDOW_MAX = 256 << 20
_NEEDS_MEMORY = "requires too much memory"  # how zstd says that a window is larger
GZIP_HEAD = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after any first byte


class DamagedStream(Exception):
    """The compressed bytes are not what their format says, or end too early."""

    @property
    def needs_memory(self) -> bool:
        """Nothing is damaged, but reading it would take more memory than is spent here."""
        return _NEEDS_MEMORY in str(self)


class Source(ABC):
    """Compressed bytes as readers want them. Every method returns as many as are there, nothing at
    the end."""

    @abstractmethod
    def take(self, size: int) -> memoryview:
        """At most `size` bytes, which stand until the next call."""

    def readinto(self, buffer: memoryview) -> int:
        target = memoryview(buffer)
        count = len(part := self.take(len(target)))
        target[:count] = part
        return count

    def read(self, size: int) -> bytes:
        return bytes(self.take(size))


class Reader(Protocol):
    """Plain bytes: nothing at the end. Raises what `damage` recognises."""

    def readinto(self, buffer: memoryview) -> int: ...


def is_compressed(head: bytes) -> bool:
    """Whether a stream with these first bytes is gzip or zstd, as containerd tells."""
    return head[:3] == GZIP_HEAD or head[:4] == _ZSTD or head[1:4] == _ZSTD_SKIPPABLE


def open_reader(head: bytes, source: Source) -> Reader:
    """The reader for a stream that begins with `head`, which the source still has to bring."""
    if head[:3] == GZIP_HEAD:
        return cast(Reader, isal_zlib._GzipReader(cast(Any, source), INPUT_BYTES))
    if is_compressed(head):
        import zstandard  # 20 ms, which most streams do without

        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX).stream_reader(
            cast(Any, source), read_size=INPUT_BYTES, read_across_frames=True
        )
    return source


def damage(error: Exception) -> DamagedStream | None:
    """What a reader's error says about the stream; None when it is about something else."""
    is_damage = isinstance(error, _DAMAGE) or type(error).__name__ == "ZstdError"
    return DamagedStream(str(error)) if is_damage else None


_DAMAGE: tuple[type[Exception], ...] = (
    EOFError,
    cast(type[Exception], IsalError),  # its stub takes it for an instance
    zlib.error,
    gzip.BadGzipFile,
    OverflowError,  # a gzip header that does not end within INPUT_BYTES
)
