"""Requests for files and blocks: what is read, and what is more than one request may ask for."""

from __future__ import annotations

import msgspec
import pytest

from zeropull.delivery.wire import (
    MAX_NAMES,
    MAX_RUNS,
    BlockRun,
    BlocksRequest,
    FilesRequest,
    decode_request,
)
from zeropull.errors import InvalidInput


def test_a_request_is_read_as_it_was_written() -> None:
    files = FilesRequest(3, ("generation.json",))
    blocks = BlocksRequest(3, (BlockRun("sha256:ab", 0, 4), BlockRun("sha256:cd", 7, 1)))
    assert decode_request(msgspec.json.encode(files), FilesRequest) == files
    assert decode_request(msgspec.json.encode(blocks), BlocksRequest) == blocks


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"generation": "x", "names": []}'])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="this is no FilesRequest"):
        decode_request(body, FilesRequest)


def test_a_request_for_too_many_names_or_runs_is_refused() -> None:
    files = FilesRequest(1, ("x",) * (MAX_NAMES + 1))
    with pytest.raises(InvalidInput, match=f"{MAX_NAMES + 1} names"):
        decode_request(msgspec.json.encode(files), FilesRequest)
    blocks = BlocksRequest(1, (BlockRun("c", 0, 1),) * (MAX_RUNS + 1))
    with pytest.raises(InvalidInput, match=f"{MAX_RUNS + 1} runs"):
        decode_request(msgspec.json.encode(blocks), BlocksRequest)


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 0), (0, -1)])
def test_a_run_outside_the_layer_is_refused(first: int, count: int) -> None:
    body = msgspec.json.encode(BlocksRequest(1, (BlockRun("c", first, count),)))
    with pytest.raises(InvalidInput, match="at least one block"):
        decode_request(body, BlocksRequest)
