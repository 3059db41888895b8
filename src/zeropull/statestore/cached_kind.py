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
        kind = self._kind.kind
        revision = self._store.revision_of(kind)
        if revision == self._revision:
            return
        changed = self._store.changed_since(kind, self._revision) if self._revision >= 0 else None
        if changed is None or len(changed) > max(100, len(self._keys) // 10):
            self._read_all()
        else:
            self._read(changed)
        self._revision = revision

    def _read(self, changed: set[str]) -> None:
        # Lists that were handed out stay as they are: somebody may be walking along one.
        self._documents = self._documents.copy()
        for key in changed:
            before = self._by_key.pop(key, None)
            stored = self._store.get(self._kind, key)
            place = bisect_left(self._keys, key)
            if before is not None:
                self._regroup(self._group(before), leaves=key)
            if stored is not None:
                self._by_key[key] = stored.document
                self._regroup(self._group(stored.document), joins=stored.document)
            if before is not None and stored is not None:
                self._documents[place] = stored.document
            elif before is not None:
                del self._keys[place], self._documents[place]
            elif stored is not None:
                self._keys.insert(place, key)
                self._documents.insert(place, stored.document)

    def _regroup(self, name: str, *, leaves: str = "", joins: D | None = None) -> None:
        members = [each for each in self._groups.get(name, ()) if each.key != leaves]
        if joins is not None:
            members.append(joins)
            members.sort(key=lambda each: each.key)
        self._groups[name] = members
        if not members:
            del self._groups[name]

    def _read_all(self) -> None:
        self._documents = [each.document for each in self._store.select(self._kind)]
        self._keys = [document.key for document in self._documents]
        self._by_key = dict(zip(self._keys, self._documents, strict=True))
        self._groups = {}
        for document in self._documents:
            self._groups.setdefault(self._group(document), []).append(document)
