"""The copies of one endpoint, found by component and by instance without looking at all of them.

A plan asks for the copies of every component and of every instance, several times; with a search
through all copies for each, a round over 10,000 copies would take most of a minute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, ValuesView

from zeropull.resources.instances import CopyRecord


class CopyIndex(MutableMapping[str, CopyRecord]):
    """Copies by ID, in the order in which they came. A copy never changes its component or its
    instance."""

    def __init__(self, copies: Iterable[CopyRecord] = ()) -> None:
        self._copies: dict[str, CopyRecord] = {}
        self._of_component: dict[str | None, dict[str, None]] = {}
        self._on_instance: dict[str, dict[str, None]] = {}
        for copy in copies:
            self[copy.copy_id] = copy

    def of_component(self, name: str) -> list[CopyRecord]:
        return [self._copies[copy_id] for copy_id in self._of_component.get(name, ())]

    def on_instance(self, instance_id: str) -> list[CopyRecord]:
        return [self._copies[copy_id] for copy_id in self._on_instance.get(instance_id, ())]

    def __setitem__(self, copy_id: str, copy: CopyRecord) -> None:
        if copy_id not in self._copies:
            self._of_component.setdefault(copy.component, {})[copy_id] = None
            self._on_instance.setdefault(copy.instance_id, {})[copy_id] = None
        self._copies[copy_id] = copy

    def __delitem__(self, copy_id: str) -> None:
        copy = self._copies.pop(copy_id)
        del self._of_component[copy.component][copy_id]
        del self._on_instance[copy.instance_id][copy_id]

    def __getitem__(self, copy_id: str) -> CopyRecord:
        return self._copies[copy_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._copies)

    def __len__(self) -> int:
        return len(self._copies)

    def values(self) -> ValuesView[CopyRecord]:
        return self._copies.values()
