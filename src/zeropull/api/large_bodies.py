"""Large bodies are parsed, and large answers written, in threads of their own.

The event loop also answers nodes and reconciles: no request may hold it for more than 50 ms.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from zeropull.awsprotocol.faults import throttled

SMALL_BYTES = 16 << 10  # parsing takes at most 10 ms, and a thread costs more than it saves
THREADS = 2  # they share one interpreter: more would not be faster
MAX_WAITING = 4  # of one account, each with a body of at most MAX_BODY_BYTES
MAX_WAITING_IN_ALL = 32

T = TypeVar("T")


class LargeBodies:
    """The threads, and the count of the pieces of work that each account has in them."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="large-body")
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()

    async def run(self, account: str, work: Callable[[], T]) -> T:
        """The result of `work`, in a thread. A caller that is cancelled does not stop it.

        Raises:
            ApiFault: ThrottlingException, when the account has too much work in the threads.
        """
        with self._lock:
            if self._waiting[account] >= MAX_WAITING or self._waiting.total() >= MAX_WAITING_IN_ALL:
                raise throttled()
            self._waiting[account] += 1
        future = self._pool.submit(work)
        future.add_done_callback(lambda _: self._done(account))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Drop the work that has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _done(self, account: str) -> None:
        with self._lock:
            self._waiting[account] -= 1
            if not self._waiting[account]:
                del self._waiting[account]
