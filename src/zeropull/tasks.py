"""Tasks that outlive the call that starts them, owned by one object.

For tasks that all live as long as one `async with` block, use `asyncio.TaskGroup`. A `TaskSet` is
for work that begins and ends one by one while its owner lives, and whose failure is no reason to
end the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from zeropull.errors import AlreadyExists, Conflict, NoCapacity, ZeropullError
from zeropull.telemetry import get_logger

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

log = get_logger(__name__)


class TaskSet(Generic[K, T]):
    """Running tasks by key, at most `limit` at a time.

    A task leaves the set when it ends. Then `on_end` gets its key and its error, which is None when
    the task was finished or cancelled. An error outside our own tree is logged with its traceback;
    an error of our own tree is the business of whoever awaits the task, and of `on_end`.

    Leaving the context cancels all tasks and waits for their end.
    """

    def __init__(
        self,
        name: str,
        *,
        limit: int,
        on_end: Callable[[K, BaseException | None], None] | None = None,
    ) -> None:
        self._name = name
        self._limit = limit
        self._on_end = on_end
        self._tasks: dict[K, asyncio.Task[T]] = {}
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: K) -> bool:
        return key in self._tasks

    def __iter__(self) -> Iterator[K]:
        """Keys of the running tasks; the set may change meanwhile."""
        return iter(tuple(self._tasks))

    @property
    def is_full(self) -> bool:
        return len(self._tasks) >= self._limit

    def get(self, key: K) -> asyncio.Task[T] | None:
        return self._tasks.get(key)

    def start(self, key: K, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start `work` as the task of `key`. `work` is closed when this raises.

        Raises:
            AlreadyExists: a task of this key is running.
            NoCapacity: the set is full.
            Conflict: the set is closed.
        """
        problem: ZeropullError | None = None
        if self._is_closed:
            problem = Conflict(f"{self._name}: {key} cannot start, everything is being stopped")
        elif key in self._tasks:
            problem = AlreadyExists(f"{self._name}: {key} is running already")
        elif self.is_full:
            problem = NoCapacity(f"{self._name}: {self._limit} tasks run already, {key} must wait")
        if problem is not None:
            work.close()
            raise problem
        task = asyncio.create_task(work, name=f"{self._name}: {key}")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))
        return task

    async def cancel(self, key: K) -> None:
        """Cancel the task of `key` and wait for its end; nothing happens when there is none."""
        if (task := self._tasks.get(key)) is not None:
            task.cancel()
            await asyncio.wait([task])

    async def wait(self) -> None:
        """Wait until no task runs; those that are started meanwhile are waited for too."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks.values()))
            await asyncio.sleep(0)  # the callbacks that take ended tasks from the set

    async def close(self) -> None:
        """Cancel all tasks and wait for their end. No other can be started afterwards."""
        self._is_closed = True
        cancelled = False
        while self._tasks:
            for task in self._tasks.values():
                task.cancel()
            try:
                await self.wait()
            except asyncio.CancelledError:
                cancelled = True  # the tasks must not outlive their owner: wait on
        if cancelled:
            raise asyncio.CancelledError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _ended(self, key: K, task: asyncio.Task[T]) -> None:
        self._tasks.pop(key, None)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ZeropullError):
            log.error(
                "task ended with an unforeseen error",
                tasks=self._name,
                key=str(key),
                error=str(error),
                exc_info=error,
            )
        if self._on_end is not None:
            self._on_end(key, error)
