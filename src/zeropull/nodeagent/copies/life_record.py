"""The record of a copy's life while it goes on: every change is stored before the next step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from zeropull.nodeagent.copies.stage_times import begin_stage, end_stage, tell_in_stage
from zeropull.nodeagent.records import CopyRecord
from zeropull.resources.stages import Stage


class LifeRecord:
    """`now` is the record as it stands. `save` stores it and tells the reporter; `clock` gives Unix
    seconds."""

    def __init__(
        self, record: CopyRecord, save: Callable[[CopyRecord], None], clock: Callable[[], float]
    ) -> None:
        self.now = record
        self._save = save
        self._clock = clock

    def update(self, **changes: Any) -> None:
        """Change members of the record."""
        self._store(dataclasses.replace(self.now, **changes))

    def begin(self, stage: Stage) -> None:
        self._store(begin_stage(self.now, stage, self._clock()))

    def end(self, stage: Stage, **facts: Any) -> None:
        """`facts` are members of `StageRecord`."""
        self._store(end_stage(self.now, stage, self._clock(), **facts))

    def tell(self, stage: Stage, detail: str) -> None:
        """How far a stage has come."""
        self._store(tell_in_stage(self.now, stage, detail))

    def _store(self, record: CopyRecord) -> None:
        if record is not self.now:
            self.now = record
            self._save(record)
