"""What a receiver asks of a supplier of blocks: the source, or another node of the endpoint.

HTTPS/1.1, kept alive, with `Authorization: Bearer <token>`. A supplier knows by the token which
endpoint's blocks the caller may have, and answers as if there were no others.

    POST /v1/files    FilesRequest   -> for each name: 8 bytes of length, then the file
    POST /v1/blocks   BlocksRequest  -> the blocks of every run, in order, without anything between

A file that is not there has the length `MISSING`. Of blocks, a supplier answers those that it has,
from the first on, and says in `BLOCKS_HEADER` how many these are: an answer may be shorter than
what was asked for, and it is never longer.

Nothing that a supplier says is believed: the index's digest is known from the control plane, it
names the digests of everything else, and each block is compared with its own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from zeropull.errors import InvalidInput

FILES_PATH = "/v1/files"
BLOCKS_PATH = "/v1/blocks"
BLOCKS_HEADER = "X-Zeropull-Blocks"
MISSING = (1 << 64) - 1
LENGTH = struct.Struct(">Q")
MAX_NAMES = 20_000
MAX_RUNS = 20_000
MAX_REQUEST_BYTES = 4 << 20

Request = TypeVar("Request", "FilesRequest", "BlocksRequest")


@dataclass(frozen=True, slots=True)
class FilesRequest:
    """Small files of one generation. `names` are relative to its folder: `generation.json`,
    `blobs/<hex>`, `layers/<hex>/meta.erofs` and so on (`zeropull.imagecache.layout`)."""

    generation: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Blocks `first` to `first + count - 1` of one layer's data file."""

    chain_id: str
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class BlocksRequest:
    """Blocks of layers of one generation, in the order in which they are wanted."""

    generation: int
    runs: tuple[BlockRun, ...]


def decode_request(body: bytes, kind: type[Request]) -> Request:
    """Raises:
    InvalidInput: the body is no such request, or asks for more than one request may.
    """
    try:
        request = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"this is no {kind.__name__}: {error}") from error
    if isinstance(request, FilesRequest):
        if len(request.names) > MAX_NAMES:
            raise InvalidInput(f"{len(request.names)} names, at most {MAX_NAMES} at once")
    elif len(request.runs) > MAX_RUNS:
        raise InvalidInput(f"{len(request.runs)} runs, at most {MAX_RUNS} at once")
    elif any(run.first < 0 or run.count < 1 for run in request.runs):
        raise InvalidInput("a run begins at 0 or later and has at least one block")
    return request
