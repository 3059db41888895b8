"""What the plugin did since it started, for people and for the node agent."""

from __future__ import annotations

import threading
from collections import Counter
from enum import StrEnum


class Count(StrEnum):
    """Everything that is counted. A miss is also counted by its reason."""

    HITS = "hits"
    HIT_BYTES = "hit_bytes"
    MISSES = "misses"
    MISSES_NOT_CACHED = "misses_not_cached"
    MISSES_VERIFICATION = "misses_verification"
    MISSES_MOUNT = "misses_mount"
    MISSES_IN_USE = "misses_in_use"
    MISSES_PARENT = "misses_parent"
    VERIFICATION_FAILURES = "verification_failures"
    MOUNTS = "mounts"
    UNMOUNTS = "unmounts"
    REFUSED_NAMESPACES = "refused_namespaces"


class Counters:
    """Counts that only grow; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[Count] = Counter()

    def add(self, count: Count, by: int = 1) -> None:
        with self._lock:
            self._counts[count] += by

    def snapshot(self) -> dict[str, int]:
        """Every count by name, those at zero included."""
        with self._lock:
            return {count.value: self._counts[count] for count in Count}
