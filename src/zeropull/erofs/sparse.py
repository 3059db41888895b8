"""Sparse tar members: GNU's old format and PAX 0.0, 0.1 and 1.0, placed as chunks with holes.

Format: GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from zeropull.erofs.tar_headers import BLOCK, number_field, pax_number
from zeropull.errors import UnreadableImage

HOLE = 0xFFFFFFFF
SPARSE_FILE_MAX_BYTES = 16 << 40  # the largest file of ext4
CHUNKS_MAX = 1 << 16
SEGMENTS_MAX = 1 << 20

Segments = list[tuple[int, int]]  # (offset in the file, length), ascending


def old_gnu_map(header: bytes, take: Callable[[int], bytes]) -> tuple[int, Segments]:
    """Real size and map of a type S member; `take` reads its extension blocks."""
    size = number_field(header[483:495], "real size")
    segments: Segments = []
    block, entries, extended = header[386:482], 4, header[482]
    while True:
        for index in range(entries):
            entry = block[24 * index : 24 * index + 24]
            if entry[0] == 0:
                break
            segments.append(
                (number_field(entry[:12], "offset"), number_field(entry[12:], "length"))
            )
        if not extended:
            return size, segments
        if len(segments) > SEGMENTS_MAX:
            raise UnreadableImage(f"a sparse file has more than {SEGMENTS_MAX} segments")
        block, entries = take(BLOCK), 21
        extended = block[504]


def pax_map(
    records: dict[bytes, bytes], pairs: list[tuple[bytes, bytes]]
) -> tuple[int, Segments] | None:
    """Real size and map of PAX 0.0 and 0.1; None when the member has neither."""
    text = records.get(b"GNU.sparse.map")
    if text is not None:
        numbers = [pax_number(part, "sparse map") for part in text.split(b",") if part]
    elif pairs:
        numbers = [pax_number(value, "sparse map") for _, value in pairs]
    else:
        return None
    size = records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize")
    if size is None or len(numbers) % 2:
        raise UnreadableImage("a sparse file has no size or an odd map")
    return pax_number(size, "sparse size"), list(zip(numbers[::2], numbers[1::2], strict=True))


def pax_1_0_map(take: Callable[[int], bytes]) -> tuple[Segments, int]:
    """The map that stands before the data of a PAX 1.0 member, and how many bytes it took."""
    used = 0
    text = bytearray()
    numbers: list[int] = []
    wanted = 1
    while len(numbers) < wanted:
        end = text.find(b"\n")
        if end < 0:
            if len(text) > 40:
                raise UnreadableImage("a sparse file's map has a number that is too long")
            text += take(BLOCK)
            used += BLOCK
            continue
        number = pax_number(bytes(text[:end]), "sparse map")
        del text[: end + 1]
        if not numbers:
            if not 0 <= number <= SEGMENTS_MAX:
                raise UnreadableImage(
                    f"a sparse file has {number} segments, at most {SEGMENTS_MAX}"
                )
            wanted = 1 + 2 * number
        numbers.append(number)
    return list(zip(numbers[1::2], numbers[2::2], strict=True)), used


def check_map(size: int, segments: Segments, stored: int) -> None:
    """Raises UnreadableImage unless the map is ascending, inside the file, as long as the data."""
    if not 0 <= size <= SPARSE_FILE_MAX_BYTES:
        raise UnreadableImage(f"a sparse file has {size} bytes, at most {SPARSE_FILE_MAX_BYTES}")
    position = total = 0
    for offset, length in segments:
        if offset < position or length < 0 or offset + length > size:
            raise UnreadableImage("a sparse file's map overlaps, runs backwards or leaves the file")
        position = offset + length
        total += length
    if total != stored:
        raise UnreadableImage(f"a sparse file's map names {total} bytes, {stored} are stored")


def chunk_bits_for(size: int) -> int:
    """Small chunks keep holes; not more than 65,536 keep the index small."""
    bits = 12
    while (size + (1 << bits) - 1) >> bits > CHUNKS_MAX:
        bits += 1
    return bits


def place(
    size: int,
    segments: Segments,
    begin: Callable[[], int],
    copy: Callable[[int], None],
    zeros: Callable[[int], None],
) -> tuple[int, array[int]]:
    """Write the segments' data chunk by chunk; returns chunk bits and each chunk's first block.

    `begin` starts a chunk on a block boundary and returns the block, `copy` moves bytes of the
    stream to the data file, `zeros` fills what is missing inside a chunk that has some data.
    """
    bits = chunk_bits_for(size)
    chunks = array("I", [HOLE]) * ((size + (1 << bits) - 1) >> bits)
    position = 0  # in the file; valid while a chunk is open
    end = 0  # of the open chunk
    for segment_offset, segment_length in segments:
        offset, length = segment_offset, segment_length
        while length:
            if offset >= end:
                zeros(end - position)
                chunk = offset >> bits
                chunks[chunk] = begin()
                position, end = chunk << bits, min((chunk + 1) << bits, size)
            zeros(offset - position)
            part = min(length, end - offset)
            copy(part)
            offset += part
            length -= part
            position = offset
    zeros(end - position)
    return bits, chunks
