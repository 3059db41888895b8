"""Scheduled actions: put, describe, delete. The reconcilers carry them out."""

from __future__ import annotations

import re
import uuid
from typing import Any

from zeropull.api.applicationautoscaling.targets import (
    WRONG_PAGE,
    check_capacities,
    is_other_namespace,
    require_target,
    target_filter,
)
from zeropull.api.listing import page
from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.autoscaler.schedules import check_schedule
from zeropull.errors import InvalidInput, NotFound
from zeropull.resources.scaling import NAMESPACE, ScheduledAction
from zeropull.statestore import Store

PAGE_SIZE = 50
_NAME = re.compile(r"(?! )[^:/|\x00-\x1f\x7f]+(?<! )")


class ScheduleOperations:
    def __init__(self, store: Store) -> None:
        self._store = store

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("PutScheduledAction", self.put),
            Operation("DescribeScheduledActions", self.describe),
            Operation("DeleteScheduledAction", self.delete),
        )

    def put(self, call: Call, members: Members) -> Output:
        """Create, or change what is given."""
        name = members["ScheduledActionName"]
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                f"The scheduled action name {name!r} may not contain : / | or control characters, "
                "nor begin or end with a space."
            )
        with self._store.transaction():
            target = require_target(self._store, call, members)
            stored = self._store.get(ScheduledAction, f"{target.key}/{name}")
            before = stored.document if stored is not None else None
            bounds = members.get("ScalableTargetAction") or {}
            schedule = members.get("Schedule") or (before.schedule if before else "")
            zone = members.get("Timezone", before.timezone if before else "")
            check_schedule(schedule, zone)
            minimum = bounds.get("MinCapacity", before.minimum if before else None)
            maximum = bounds.get("MaxCapacity", before.maximum if before else None)
            if minimum is None and maximum is None:
                raise InvalidInput("ScalableTargetAction needs MinCapacity, MaxCapacity or both.")
            check_capacities(target.dimension, minimum, maximum)
            if minimum is not None and maximum is not None and minimum > maximum:
                raise InvalidInput(f"MinCapacity {minimum} is above MaxCapacity {maximum}.")
            start_s = members.get("StartTime", before.start_s if before else None)
            end_s = members.get("EndTime", before.end_s if before else None)
            if start_s is not None and end_s is not None and start_s >= end_s:
                raise InvalidInput(
                    "The StartTime of a scheduled action must be before its EndTime."
                )
            self._store.put(
                ScheduledAction(
                    account=call.account,
                    resource_id=target.resource_id,
                    dimension=target.dimension,
                    name=name,
                    arn=before.arn if before else _arn(call, target.resource_id, name),
                    schedule=schedule,
                    created_s=before.created_s if before else call.now_s,
                    timezone=zone,
                    start_s=start_s,
                    end_s=end_s,
                    minimum=minimum,
                    maximum=maximum,
                    last_run_s=call.now_s,
                )
            )
        return {}

    def describe(self, call: Call, members: Members) -> Output:
        resource_id, dimension = target_filter(members)
        if is_other_namespace(members):
            return {"ScheduledActions": []}
        names = members.get("ScheduledActionNames")
        found = [
            stored.document
            for stored in self._store.select(ScheduledAction, prefix=f"{call.account}/")
            if resource_id in (None, stored.document.resource_id)
            and dimension in (None, stored.document.dimension)
            and (names is None or stored.document.name in names)
        ]
        chosen, token = page(
            found,
            members,
            lambda action: (action.resource_id, action.name),
            descending=False,
            default_size=PAGE_SIZE,
            token_fault=WRONG_PAGE,
        )
        return {"ScheduledActions": [_describe(each) for each in chosen], "NextToken": token}

    def delete(self, call: Call, members: Members) -> Output:
        with self._store.transaction():
            target = require_target(self._store, call, members)
            name = members["ScheduledActionName"]
            if not self._store.delete(ScheduledAction, f"{target.key}/{name}"):
                raise NotFound(
                    f"No scheduled action found for service namespace: {NAMESPACE}, resource ID: "
                    f"{target.resource_id}, scheduled action name: {name}"
                )
        return {}


def _arn(call: Call, resource_id: str, name: str) -> str:
    return (
        f"arn:aws:autoscaling:{call.region}:{call.account}:scheduledAction:{uuid.uuid4()}:resource/"
        f"{NAMESPACE}/{resource_id}:scheduledActionName/{name}"
    )


def _describe(action: ScheduledAction) -> dict[str, Any]:
    return {
        "ScheduledActionName": action.name,
        "ScheduledActionARN": action.arn,
        "ServiceNamespace": NAMESPACE,
        "Schedule": action.schedule,
        "Timezone": action.timezone or None,
        "ResourceId": action.resource_id,
        "ScalableDimension": action.dimension,
        "StartTime": action.start_s,
        "EndTime": action.end_s,
        "ScalableTargetAction": {"MinCapacity": action.minimum, "MaxCapacity": action.maximum},
        "CreationTime": action.created_s,
    }
