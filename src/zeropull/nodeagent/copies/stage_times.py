"""The stages of a copy's launch in its record. Pure.

Stages tell of the launch: once a copy has been healthy, they stay as they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from zeropull.nodeagent.records import CopyRecord
from zeropull.resources.stages import Stage, StageRecord


def begin_stage(record: CopyRecord, stage: Stage, now_s: float) -> CopyRecord:
    """The record with the stage begun; a later attempt keeps the time of the first one."""
    if record.healthy_at_s is not None:
        return record
    known = record.stages.get(stage)
    if known is None:
        known = StageRecord(stage, now_s)
    elif stage in (Stage.START, Stage.HEALTH):
        known = dataclasses.replace(known, ended_s=None)
    return dataclasses.replace(record, stages={**record.stages, stage: known})


def end_stage(record: CopyRecord, stage: Stage, now_s: float, **facts: Any) -> CopyRecord:
    """The record with the stage ended. `facts` are members of `StageRecord`."""
    known = record.stages.get(stage)
    if known is None or record.healthy_at_s is not None:
        return record
    if known.ended_s is not None and stage is not Stage.IMAGE:
        return record
    if known.ended_s is not None and facts.get("path") != "containerd":
        return record  # a later attempt found everything there; the first one's bytes are the truth
    ended = dataclasses.replace(known, ended_s=now_s, **facts)
    return dataclasses.replace(record, stages={**record.stages, stage: ended})


def tell_in_stage(record: CopyRecord, stage: Stage, detail: str) -> CopyRecord:
    """The record with `detail` in a stage that goes on; the same record when nothing changes."""
    known = record.stages.get(stage)
    if known is None or known.ended_s is not None or not detail or detail == known.detail:
        return record
    told = dataclasses.replace(known, detail=detail)
    return dataclasses.replace(record, stages={**record.stages, stage: told})
