"""Which reader a stream gets by its first bytes, and which errors are damage."""

from __future__ import annotations

import gzip
import zlib

import pytest
import zstandard

from zeropull.inflating.readers import DamagedStream, Source, damage, is_compressed, open_reader

CONTENT = b"all of it " * 10_000
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"


class MemorySource(Source):
    """Hands the bytes out in pieces of at most `piece`."""

    def __init__(self, content: bytes, piece: int) -> None:
        self._rest = memoryview(content)
        self._piece = piece

    def take(self, size: int) -> memoryview:
        count = min(size, self._piece)
        part, self._rest = self._rest[:count], self._rest[count:]
        return part


def read_all(content: bytes, piece: int = 1000) -> bytes:
    reader = open_reader(content[:4], MemorySource(content, piece))
    buffer, parts = bytearray(7000), []
    while count := reader.readinto(memoryview(buffer)):
        parts.append(bytes(buffer[:count]))
    return b"".join(parts)


@pytest.mark.parametrize("piece", [1, 1000, 1 << 20])
@pytest.mark.parametrize(
    "packed",
    [gzip.compress(CONTENT), zstandard.compress(CONTENT), SKIPPABLE + zstandard.compress(CONTENT)],
    ids=["gzip", "zstd", "zstd-skippable"],
)
def test_compressed_streams_are_read_from_pieces_of_any_size(packed: bytes, piece: int) -> None:
    assert is_compressed(packed[:4])
    assert read_all(packed, piece) == CONTENT


@pytest.mark.parametrize("plain", [b"", b"\x1f", b"usr/bin", b"\x1f\x8b\x07other method"])
def test_anything_else_is_handed_on_as_it_is(plain: bytes) -> None:
    assert not is_compressed(plain[:4])
    assert read_all(plain) == plain


@pytest.mark.parametrize(
    ("packed", "place"),
    [
        (gzip.compress(CONTENT), -5),  # in the checksum
        (zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT), -1),
    ],
    ids=["gzip", "zstd"],
)
def test_what_readers_say_of_a_broken_stream_is_damage(packed: bytes, place: int) -> None:
    broken = bytearray(packed)
    broken[place] ^= 1
    with pytest.raises(Exception) as caught:
        read_all(bytes(broken))
    found = damage(caught.value)
    assert isinstance(found, DamagedStream) and not found.needs_memory


def test_other_errors_are_about_something_else() -> None:
    assert damage(zlib.error("incorrect data check")) is not None
    assert damage(OSError("no space left")) is None
    assert damage(ValueError("a bug")) is None
