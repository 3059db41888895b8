"""Changes: the revision of each kind, the keys of the newest changes, and callers that wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

KEPT = 10_000
"""Changes of one kind that are remembered by key; about 1 MiB."""


@dataclass(slots=True)
class _Kind:
    revision: int
    complete_from: int  # every change after this revision is in `changes`
    changes: deque[tuple[int, str]] = field(default_factory=deque)


class ChangeLog:
    """Written by the store after each transaction; `wait` may be called in any thread's loop."""

    def __init__(self, revisions: Mapping[str, int]) -> None:
        self.revision = max(revisions.values(), default=0)
        self._kinds = {kind: _Kind(at, at) for kind, at in revisions.items()}
        self._opened_at = self.revision
        self._owners: deque[tuple[int, str]] = deque()
        self._owners_from = self.revision  # every owner of a change after it is in `_owners`
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def announce(
        self, changed: Mapping[str, set[str]], owners: Collection[str | None] = ()
    ) -> None:
        """The keys that one transaction has changed, by kind, and the endpoints that own one of the
        documents, by uid; None: of one, nobody knows."""
        if not changed:
            return
        self.revision += 1
        self._owners.extend((self.revision, uid) for uid in owners if uid is not None)
        while len(self._owners) > KEPT:
            self._owners_from = self._owners.popleft()[0]
        if None in owners:
            self._owners_from = self.revision
        for name, keys in changed.items():
            kind = self._kinds.setdefault(name, _Kind(0, self._opened_at))
            kind.revision = self.revision
            kind.changes.extend((self.revision, key) for key in keys)
            while len(kind.changes) > KEPT:
                kind.complete_from = kind.changes.popleft()[0]
        for loop, event in list(self._waiters):
            with contextlib.suppress(RuntimeError):  # that loop has been closed meanwhile
                loop.call_soon_threadsafe(event.set)

    def revision_of(self, *kinds: str) -> int:
        """The newest revision that changed one of these kinds; all kinds when none is named."""
        if not kinds:
            return self.revision
        found = (self._kinds.get(kind) for kind in kinds)
        return max((kind.revision for kind in found if kind is not None), default=0)

    def since(self, kind: str, revision: int) -> set[str] | None:
        """Keys that changed after `revision`; None when not all of them are known."""
        known = self._kinds.get(kind)
        if known is None or known.revision <= revision:
            return set()
        if revision < known.complete_from:
            return None
        return _newer(known.changes, revision)

    def owners_since(self, revision: int) -> set[str] | None:
        """Endpoints, by uid, of which a document changed after `revision`; None when not all of
        them are known."""
        if revision < self._owners_from:
            return None
        return _newer(self._owners, revision)

    async def wait(self, since: int, *kinds: str, timeout_s: float) -> int:
        """`revision_of(*kinds)` as soon as it is greater than `since`, or after `timeout_s`."""
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                while self.revision_of(*kinds) <= since:
                    await event.wait()
                    event.clear()
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)
        return self.revision_of(*kinds)


def _newer(changes: deque[tuple[int, str]], revision: int) -> set[str]:
    found = set()
    for at, name in reversed(changes):
        if at <= revision:
            break
        found.add(name)
    return found
