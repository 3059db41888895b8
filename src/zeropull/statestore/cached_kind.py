"""Documents of one kind in memory, until one of them changes: for loops that look every second."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Generic, TypeVar

from zeropull.resources.documents import Document
from zeropull.statestore.store import Store

D = TypeVar("D", bound=Document)


class CachedKind(Generic[D]):
    """Answers `get`, `under` and `grouped` from memory; every answer is the store's newest."""

    def __init__(
        self, store: Store, kind: type[D], group: Callable[[D], str] = lambda _: ""
    ) -> None:
        self._store = store
        self._kind = kind
        self._group = group
        self._revision = -1
        self._keys: list[str] = []
        self._documents: list[D] = []
        self._by_key: dict[str, D] = {}
        self._groups: dict[str, list[D]] = {}

    def all(self) -> list[D]:
        """In the order of their keys."""
        self._refresh()
        return self._documents

    def get(self, key: str) -> D | None:
        self._refresh()
        return self._by_key.get(key)

    def under(self, prefix: str) -> list[D]:
        """Those whose key begins with `prefix`."""
        self._refresh()
        first = bisect_left(self._keys, prefix)
        last = bisect_left(self._keys, prefix + "\U0010ffff")
        return self._documents[first:last]

    def grouped(self, name: str) -> list[D]:
        """Those whose `group` is `name`."""
        self._refresh()
        return self._groups.get(name, [])

    def _refresh(self) -> None:
        revision = self._store.revision_of(self._kind.kind)
        if revision == self._revision:
            return
        stored = self._store.select(self._kind)
        self._documents = [each.document for each in stored]
        self._keys = [document.key for document in self._documents]
        self._by_key = dict(zip(self._keys, self._documents, strict=True))
        self._groups = {}
        for document in self._documents:
            self._groups.setdefault(self._group(document), []).append(document)
        self._revision = revision
