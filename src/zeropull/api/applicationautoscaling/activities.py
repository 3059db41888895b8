"""DescribeScalingActivities: what was scaled and, when asked for, what was not and why."""

from __future__ import annotations

from typing import Any

from zeropull.api.applicationautoscaling.targets import (
    WRONG_PAGE,
    is_other_namespace,
    target_filter,
)
from zeropull.api.listing import page
from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.resources.scaling import NAMESPACE, ScalingActivity
from zeropull.statestore import Store

PAGE_SIZE = 50
KEPT_S = 6 * 7 * 86400


class ActivityOperations:
    def __init__(self, store: Store) -> None:
        self._store = store

    def operations(self) -> tuple[Operation, ...]:
        return (Operation("DescribeScalingActivities", self.describe),)

    def describe(self, call: Call, members: Members) -> Output:
        resource_id, dimension = target_filter(members)
        if is_other_namespace(members):
            return {"ScalingActivities": []}
        with_not_scaled = members.get("IncludeNotScaledActivities", False)
        found = [
            stored.document
            for stored in self._store.select(ScalingActivity, prefix=f"{call.account}/")
            if resource_id in (None, stored.document.resource_id)
            and dimension in (None, stored.document.dimension)
            and (with_not_scaled or not stored.document.not_scaled)
            and stored.document.began_s >= call.now_s - KEPT_S
        ]
        chosen, token = page(
            found,
            members,
            _place,
            descending=True,
            default_size=PAGE_SIZE,
            token_fault=WRONG_PAGE,
        )
        return {"ScalingActivities": [_describe(each) for each in chosen], "NextToken": token}


def _place(activity: ScalingActivity) -> tuple[float, str]:
    """A schedule sets the bounds before the capacity is moved into them, at the same time."""
    return activity.began_s, f"{activity.desired is not None:d} {activity.activity_id}"


def _describe(activity: ScalingActivity) -> dict[str, Any]:
    return {
        "ActivityId": activity.activity_id,
        "ServiceNamespace": NAMESPACE,
        "ResourceId": activity.resource_id,
        "ScalableDimension": activity.dimension,
        "Description": activity.description,
        "Cause": activity.cause,
        "StartTime": activity.began_s,
        "EndTime": activity.ended_s,
        "StatusCode": activity.status,
        "StatusMessage": activity.message or None,
        "Details": activity.details or None,
        "NotScaledReasons": list(activity.not_scaled) or None,
    }
