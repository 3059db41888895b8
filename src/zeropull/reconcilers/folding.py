"""Turns reports of nodes and gateways into the observed side of the stored documents. Pure."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import CopyReport, CopyState
from zeropull.reconcilers.endpoint_view import Gateways
from zeropull.resources.instances import (
    CopyIntent,
    CopyRecord,
    Instance,
    TimelineRecord,
)
from zeropull.resources.stages import Stage, StageRecord

Number = TypeVar("Number", int, float)


def fold_copy(copy: CopyRecord, report: CopyReport) -> CopyRecord:
    """The copy as its node sees it."""
    return replace(
        copy,
        state=report.state.value,
        host=report.host,
        port=report.port,
        healthy_s=copy.healthy_s if copy.healthy_s is not None else report.healthy_at_s,
        restarts=report.restarts,
        next_start_s=report.next_start_s,
        failure=report.failure.value if report.failure else None,
        message=report.message,
    )


def fold_gateways(
    exchange: Exchange,
    serving_since: Mapping[tuple[str, str], int],
    monotonic_s: float,
    silent_s: float,
) -> Gateways:
    """All gateways that have reported within `silent_s`, as one.

    `serving_since`: by account and name of an endpoint, the version of the routes that said first
    that it serves.
    """
    heard = [r.report for r in exchange.gateways.values() if monotonic_s - r.heard_s <= silent_s]
    published = exchange.routes.message
    told = published is None or all(
        exchange.told(published, r.routes_version, r.routes_epoch) for r in heard
    )
    # Not the newest version: where routes change all the time, it is never applied by all.
    applied = min(
        (r.routes_version if r.routes_epoch in (exchange.epoch, "") else -1 for r in heard),
        default=-1,
    )
    serving = frozenset(name for name, version in serving_since.items() if version <= applied)
    return Gateways(
        up=bool(heard),
        acknowledged=told,
        serving=serving,
        in_flight=_merged([r.in_flight for r in heard], operator.add),
        routed_s=_merged([r.routed_at_s for r in heard], min),
        first_response_s=_merged([r.first_response_s for r in heard], min),
    )


def fold_timeline(
    record: TimelineRecord,
    instance: Instance | None,
    copy: CopyRecord | None,
    report: CopyReport | None,
    gateways: Gateways,
) -> TimelineRecord:
    """Everything that is known about a launch by now, in the order of the stages."""
    stages = {s.stage: s for s in record.stages}
    if report is not None:
        for stage in report.stages:
            stages[stage.stage] = stage
    if instance is not None and instance.launched_s is not None and record.new_instance:
        work = [s.began_s for s in stages.values() if s.stage in (Stage.IMAGE, Stage.MODEL)]
        stages[Stage.PROVISION] = _provision(instance, min(work, default=None))
    ready_s = record.ready_s
    if copy is not None and copy.routed_s is not None and copy.healthy_s is not None:
        ready_s = ready_s or copy.routed_s
        began_s = min(copy.healthy_s, copy.routed_s)
        stages.setdefault(Stage.ROUTE, StageRecord(Stage.ROUTE, began_s, copy.routed_s))
    first_s = record.first_response_s or gateways.first_response_s.get(record.copy_id)
    ordered = tuple(stages[stage] for stage in Stage if stage in stages)
    return replace(record, stages=ordered, ready_s=ready_s, first_response_s=first_s)


def ended(record: TimelineRecord, now_s: float) -> TimelineRecord:
    """The record of a copy that is gone; stages that never ended stay open."""
    return record if record.ended_s is not None else replace(record, ended_s=now_s)


def surplus_timelines(records: list[TimelineRecord], limit: int) -> list[TimelineRecord]:
    """What must be forgotten so that `limit` are left: the oldest of those that have ended."""
    over = len(records) - limit
    gone = sorted((r for r in records if r.ended_s is not None), key=lambda r: r.began_s)
    return gone[: max(0, over)]


def is_routable(copy: CopyRecord) -> bool:
    return (
        copy.intent is CopyIntent.RUN
        and copy.state == CopyState.HEALTHY
        and copy.host is not None
        and copy.container == 0
    )


def _provision(instance: Instance, first_work_s: float | None) -> StageRecord:
    """Until the node begins to work: its agent has started and has its assignment."""
    assert instance.launched_s is not None
    volumes = ", ".join(str(v.generation) for v in instance.volumes)
    detail = f"{instance.instance_id}, {instance.instance_type}" + (
        f", image cache generation {volumes} attached" if volumes else ", no image cache attached"
    )
    return StageRecord(Stage.PROVISION, instance.launched_s, first_work_s, detail=detail)


def _merged(
    values: list[dict[str, Number]], both: Callable[[Number, Number], Number]
) -> dict[str, Number]:
    """`both` of what two gateways say of the same copy. What one alone says is not copied: it may
    be ten thousand entries in each round."""
    if len(values) <= 1:
        return values[0] if values else {}
    merged = dict(values[0])
    for others in values[1:]:
        for key, value in others.items():
            merged[key] = both(merged[key], value) if key in merged else value
    return merged
