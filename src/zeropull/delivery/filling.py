"""Brings blocks of arriving layers: on demand, by the start profile, and the rest.

Three ways share the suppliers and the link. A reader that waits comes first: its blocks are asked
for at once, on a connection of their own. The profile is one long stream in the order of first use,
and the rest follows in large pieces. A stream claims only what it brings next, so that a reader who
needs a later block does not wait for everything before it.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from zeropull.delivery.arriving import ArrivingLayer
from zeropull.delivery.suppliers import Supplier, Suppliers, lied
from zeropull.delivery.wire import BlockRun
from zeropull.errors import DiskFull, IntegrityError, Unavailable, ZeropullError
from zeropull.telemetry import get_logger

DEMAND_THREADS = 16
DEMAND_LIMIT_S = 60.0  # a reader waits as long at most, then gets EIO
RETRY_S = 0.2
MAX_LIES = 3  # rounds in which everybody sent wrong bytes: they will not be right the next time
READ_AHEAD_BLOCKS = 8  # 2 MiB, for a reader that goes straight on
STREAM_WINDOW = 16  # blocks that a stream has claimed: 4 MiB on their way
STREAM_BLOCKS = 2_048  # of one request: 512 MiB

log = get_logger(__name__)


class Cause(StrEnum):
    """Why a block was brought."""

    DEMAND = "demand"
    PROFILE = "profile"
    REST = "rest"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One block of one layer."""

    layer: ArrivingLayer
    block: int


class Filler:
    """`generation_of` says in which generation a supplier finds a layer."""

    def __init__(
        self, suppliers: Suppliers, generation_of: Callable[[ArrivingLayer], int | None]
    ) -> None:
        self._suppliers = suppliers
        self._generation_of = generation_of
        self._pool = ThreadPoolExecutor(DEMAND_THREADS, thread_name_prefix="demand")
        self._next: dict[ArrivingLayer, int] = {}
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self.bytes: Counter[Cause] = Counter()
        self.faults = 0
        self.wait_s = 0.0
        self.failed_faults = 0
        self.last_failure = ""

    def close(self) -> None:
        """Streams and waits end soon."""
        self._is_closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def need(
        self, layer: ArrivingLayer, first: int, count: int, done: Callable[[bool], None]
    ) -> None:
        """Call `done` once the blocks are here, at once if they are: True. False: they will not
        come. `done` runs in this thread or in one of the filler's; it must not wait."""
        count = min(count, layer.blocks - first)
        if count <= 0 or layer.has(first, count):
            done(True)
            return
        began_s = time.monotonic()

        def work() -> None:
            is_here = False
            try:
                is_here = self._fill(layer, first, count, began_s + DEMAND_LIMIT_S)
            except Exception as error:  # a reader must never wait for ever
                log.error("a reader cannot be served", error=repr(error), exc_info=error)
            finally:
                with self._lock:
                    self.faults += 1
                    self.failed_faults += not is_here
                    self.wait_s += time.monotonic() - began_s
                done(is_here)

        self._pool.submit(work)

    def stream(self, wanted: Sequence[Wanted], cause: Cause) -> None:
        """Bring what is missing of the blocks, in order. Blocking; ends early once closed.

        Raises:
            Unavailable, DiskFull: some of them cannot be brought now.
        """
        left = [each for each in wanted if not each.layer.has(each.block)]
        while left and not self._is_closed.is_set():
            self._bring(left[:STREAM_BLOCKS], cause, window=STREAM_WINDOW)
            before = len(left)
            left = [each for each in left if not each.layer.has(each.block)]
            if len(left) == before:  # others bring all of these, or nobody can
                self._is_closed.wait(RETRY_S)

    def _fill(self, layer: ArrivingLayer, first: int, count: int, deadline_s: float) -> bool:
        with self._lock:
            goes_on = self._next.get(layer) == first
            self._next[layer] = first + count
        ahead = min(READ_AHEAD_BLOCKS if goes_on else 0, layer.blocks - first - count)
        lies = 0
        while not self._is_closed.is_set():
            mine = layer.claim(range(first, first + count + ahead))
            if mine:
                try:
                    self._bring([Wanted(layer, block) for block in mine], Cause.DEMAND)
                except DiskFull as error:
                    self.last_failure = error.reason
                    return False
                except IntegrityError as error:
                    self.last_failure = error.reason
                    lies += 1
                    if lies == MAX_LIES:
                        return False
                except ZeropullError as error:
                    self.last_failure = error.reason
                finally:
                    layer.give_up(mine)
            left_s = deadline_s - time.monotonic()
            if layer.wait(first, count, max(0.0, left_s)):
                return True
            if left_s <= 0:
                return False
            ahead = 0
            self._is_closed.wait(RETRY_S)
        return False

    def _bring(self, wanted: Sequence[Wanted], cause: Cause, *, window: int = 0) -> None:
        """Ask one supplier after the other for what is still missing.

        Raises:
            Unavailable: nobody has all of it.
            DiskFull: it cannot be written.
        """
        last: ZeropullError = Unavailable("nobody holds these blocks")
        for supplier in self._suppliers.everybody():
            left = [each for each in wanted if not each.layer.has(each.block)]
            if not left:
                return
            try:
                self._from_supplier(supplier, left, cause, window)
            except DiskFull:
                raise
            except IntegrityError as error:  # noted with the supplier already
                last = error
            except ZeropullError as error:
                supplier.note_failure(error.reason, time.monotonic())
                last = error
        if any(not each.layer.has(each.block) for each in wanted) and not self._is_closed.is_set():
            raise last

    def _from_supplier(
        self, supplier: Supplier, wanted: Sequence[Wanted], cause: Cause, window: int
    ) -> None:
        by_generation = self._generation_of(wanted[0].layer)
        if by_generation is None:
            raise Unavailable(f"{wanted[0].layer.path} belongs to no generation any more")
        sizes = (each.layer.block_bytes(each.block) for each in wanted)
        contents = supplier.blocks(by_generation, runs_of(wanted), sizes)
        claimed: list[Wanted] = []
        reached = 0
        try:
            for number, (each, content) in enumerate(zip(wanted, contents, strict=False)):
                while window and reached < min(len(wanted), number + window):
                    near = wanted[reached]
                    if near.layer.claim([near.block]):
                        claimed.append(near)
                    reached += 1
                self._put(supplier, each, content, cause)
                if self._is_closed.is_set():
                    return
        finally:
            for each in claimed:
                each.layer.give_up([each.block])

    def _put(self, supplier: Supplier, wanted: Wanted, content: memoryview, cause: Cause) -> None:
        layer, block = wanted.layer, wanted.block
        size = len(content)
        try:
            if not layer.put(block, content):
                raise lied(supplier, f"block {block} of {layer.index.chain_id}")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"block {block} of {layer.path}: {error.strerror}") from error
            raise Unavailable(f"block {block} of {layer.path}: {error.strerror}") from error
        with self._lock:
            self.bytes[cause] += size


def runs_of(wanted: Iterable[Wanted]) -> list[BlockRun]:
    """The blocks in their order, neighbours in a row as one run."""
    runs: list[BlockRun] = []
    for each in wanted:
        last = runs[-1] if runs else None
        chain_id = each.layer.index.chain_id
        if last and last.chain_id == chain_id and last.first + last.count == each.block:
            runs[-1] = BlockRun(chain_id, last.first, last.count + 1)
        else:
            runs.append(BlockRun(chain_id, each.block, 1))
    return runs
