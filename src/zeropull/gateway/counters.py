"""What the gateway counts beside the requests of a group."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from zeropull.gateway.refusals import Refusal
from zeropull.gateway.results import CLIENT_GONE, Result
from zeropull.gateway.routing import Group


@dataclass(slots=True)
class Counters:
    """Since the process began."""

    refused: Counter[Result] = field(default_factory=Counter)  # before a group was found
    cancelled: int = 0  # by clients that went away

    def count_refusal(self, group: Group | None, refusal: Refusal) -> None:
        results = self.refused if group is None else group.results
        results[Result(refusal.status, refusal.code)] += 1

    def count_cancelled(self, group: Group | None) -> None:
        self.cancelled += 1
        if group is not None:
            group.results[CLIENT_GONE] += 1
