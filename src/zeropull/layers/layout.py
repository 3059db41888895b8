"""What lies where in a layer directory, and its JSON document.

A layer directory is named after the 64 hex digits of its chain ID and never changes once it is
published by rename:

    layer.json      LayerIndex: digests and sizes of the three files below
    meta.erofs      EROFS metadata image, valid with `device=data.erofs`
    data.erofs      file contents, each on a 4 KiB boundary; may be empty, then no device is needed
    blocks.blake3   32-byte digests of each 256 KiB block of data.erofs, in order
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, TypeVar

import msgspec
from blake3 import blake3

from zeropull.errors import IntegrityError, NotFound
from zeropull.oci.digests import digest_of, hex_of

FORMAT = 1
BLOCK_BYTES = 256 << 10
DIGEST_BYTES = 32

LAYER_FILE = "layer.json"
META_FILE = "meta.erofs"
DATA_FILE = "data.erofs"
BLOCKS_FILE = "blocks.blake3"
LAYER_FILES = (LAYER_FILE, META_FILE, DATA_FILE, BLOCKS_FILE)

TEMPORARY_PREFIX = ".tmp-"


class Document(Protocol):
    """An index of this project: a JSON document that says its format."""

    @property
    def format(self) -> int: ...


DocumentT = TypeVar("DocumentT", bound=Document)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and sha256 digest of one file."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class DataRecord:
    """`digest` is the sha256 digest of blocks.blake3, which lists those of data.erofs' blocks."""

    size: int
    digest: str
    block_bytes: int = BLOCK_BYTES
    block_digest: Literal["blake3"] = "blake3"

    @property
    def blocks(self) -> int:
        return -(-self.size // self.block_bytes)


@dataclass(frozen=True, slots=True)
class LayerIndex:
    """layer.json. `blob_digest` is of the compressed blob ("" if unknown); `parent_chain_id` is ""
    for the lowest layer; `unpacked_bytes` sums the sizes of regular files; `files` counts entries.
    """

    chain_id: str
    diff_id: str
    parent_chain_id: str
    meta: FileRecord
    data: DataRecord
    blob_digest: str = ""
    unpacked_bytes: int = 0
    files: int = 0
    format: int = FORMAT

    @property
    def stored_bytes(self) -> int:
        return self.meta.size + self.data.size + self.data.blocks * DIGEST_BYTES


def digest_block(block: memoryview) -> bytes:
    """The digest of one block of data.erofs, 32 bytes.

    BLAKE3: every data byte goes through SHA-256 once already, for the diff ID, and this is twice as
    fast (2.9 against 1.4 GB/s on a processor that has SHA instructions).
    """
    return blake3(block).digest()


def layer_directory(store: Path, chain_id: str) -> Path:
    """Where the layer lies in a layer store or in a catalog."""
    return store / hex_of(chain_id)


def read_layer_index(layer_dir: Path, *, digest: str | None = None) -> LayerIndex:
    """Read layer.json, which must have `digest` where one is given.

    Raises:
        NotFound: there is no such layer.
        IntegrityError: the document is damaged, or of an unknown format.
    """
    return read_document(layer_dir / LAYER_FILE, LayerIndex, digest, FORMAT)


def encode_document(document: Document) -> bytes:
    """The bytes of an index: equal indexes give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=1)


def read_document(
    path: Path, kind: type[DocumentT], digest: str | None, known_format: int
) -> DocumentT:
    """Read an index. `digest`: what the file's sha256 digest must be, None = any.

    Raises:
        NotFound: there is no such file.
        IntegrityError: it is damaged, or its format is not `known_format`.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{path} does not exist") from error
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}") from error
    if digest is not None and digest_of(content) != digest:
        raise IntegrityError(f"{path} has the digest {digest_of(content)}, expected {digest}")
    try:
        document = msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} is damaged: {error}") from error
    if document.format != known_format:
        raise IntegrityError(
            f"{path} has format {document.format}, this version reads {known_format}"
        )
    return document


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file and bring it to the disk. The caller syncs its folder."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_all_durably(contents: Mapping[Path, bytes], written: Path) -> None:
    """Write new files, and bring them and one that is `written` already to the disk together: all
    are on their way before the first is waited for, which takes one commit of the file system's
    journal instead of one for each. Their directory is the caller's to fsync."""
    with contextlib.ExitStack() as stack:
        files: list[BinaryIO] = [stack.enter_context(written.open("rb"))]
        for path, content in contents.items():
            new = stack.enter_context(path.open("xb"))
            new.write(content)
            new.flush()
            os.posix_fadvise(new.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # begins to write
            files.append(new)
        for file in files:
            os.fsync(file.fileno())
