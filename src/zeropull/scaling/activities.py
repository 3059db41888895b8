"""Scaling activities: one for every change of capacity, and for what stood in the way of one.

Source: Application Auto Scaling user guide, "Scaling activities": InProgress ends as Successful, as
Failed with its cause, or as Overridden by the next change; of a run of attempts that change nothing
for the same reason only the first is recorded, also where two reasons take turns.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from typing import Any

from zeropull.autoscaler.readings import NotScaled
from zeropull.backoff import Backoff
from zeropull.resources.scaling import COMPONENT_DIMENSION, ScalableTarget, ScalingActivity
from zeropull.scaling.capacity import Capacity
from zeropull.statestore import Store

KEPT = 200
RETRY = Backoff(first_s=60.0, limit_s=600.0)
"""Between scale-outs of one target that failed."""
_RECORDED = frozenset(
    {
        NotScaled.ANTICIPATED_FLAPPING,
        NotScaled.UNSCALABLE,
        NotScaled.AT_MAXIMUM,
        NotScaled.AT_MINIMUM,
        NotScaled.AT_DESIRED,
        NotScaled.INTERNAL,
    }
)


class ActivityLog:
    """The activities of one target, newest last. Nothing else writes them, and a target has one
    log at a time."""

    def __init__(self, store: Store, target: ScalableTarget) -> None:
        self._store = store
        self._prefix = f"{target.key}/"
        self._all = self._read()

    def begin(self, target: ScalableTarget, desired: int, cause: str, now_s: float) -> None:
        """A change has been accepted; one that was still in progress has been overtaken."""
        what = "copy count" if target.dimension == COMPONENT_DIMENSION else "instance count"
        with self._store.transaction():
            for number, activity in enumerate(self._all):
                if activity.status == "InProgress":
                    self._replace(number, status="Overridden", ended_s=now_s)
            self._add(
                target,
                description=f"Setting desired {what} to {desired}.",
                cause=cause,
                began_s=now_s,
                status="InProgress",
                message=(
                    f"Successfully set desired {what} to {desired}. Waiting for change to be "
                    "fulfilled by sagemaker."
                ),
                desired=desired,
            )

    def follow(self, capacity: Capacity, lacking: str, now_s: float) -> None:
        """Give what is in progress its end, as the endpoint or the component shows it; `lacking`
        says meanwhile why instances cannot be had, empty when they can."""
        for number, activity in enumerate(self._all):
            if activity.status != "InProgress":
                continue
            if capacity.is_in_progress:
                if activity.details != lacking:
                    self._replace(number, details=lacking)
                continue
            done = capacity.current == activity.desired
            what = f"{capacity.unit} count"
            message = (
                f"Successfully set desired {what} to {activity.desired}. Change successfully "
                "fulfilled by sagemaker."
                if done
                else f"The {what} is {capacity.current}, not {activity.desired}: "
                f"{capacity.failure_reason or 'the change was rolled back'}"
            )
            status = "Successful" if done else "Failed"
            self._replace(number, status=status, ended_s=now_s, message=message)

    def note_not_scaled(
        self, target: ScalableTarget, code: NotScaled, desired: int, cause: str, now_s: float
    ) -> None:
        """Only the reasons that AWS knows are recorded, and our own failure to decide."""
        if code not in _RECORDED:
            return
        reason: dict[str, Any] = {"Code": code.value}
        if code is NotScaled.AT_MAXIMUM:
            reason["MaxCapacity"] = target.maximum
        elif code is NotScaled.AT_MINIMUM:
            reason["MinCapacity"] = target.minimum
        elif code is NotScaled.AT_DESIRED:
            reason["CurrentCapacity"] = desired
        if any(each.not_scaled == (reason,) for each in self._since_last_change()):
            return  # told already
        with self._store.transaction():
            self._add(
                target,
                description="Attempting to scale due to alarm triggered",
                cause=cause,
                began_s=now_s,
                ended_s=now_s,
                status="Failed",
                not_scaled=(reason,),
            )

    def note_schedule(self, target: ScalableTarget, name: str, now_s: float) -> None:
        """A scheduled action has set the bounds; moving the capacity into them is another one."""
        bounds = f"min capacity to {target.minimum} and max capacity to {target.maximum}"
        with self._store.transaction():
            self._add(
                target,
                description=f"Setting {bounds}",
                cause=f"scheduled action name {name} was triggered",
                began_s=now_s,
                ended_s=now_s,
                status="Successful",
                message=f"Successfully set {bounds}",
            )

    def changed_s(self) -> float:
        """Since when the newest change that succeeded has been in effect; 0 = never one."""
        changes = [a for a in self._all if a.desired is not None]
        ended = (a.ended_s or 0.0 for a in reversed(changes) if a.status == "Successful")
        return next(ended, 0.0)

    def retry(self, now_s: float) -> tuple[float, str] | None:
        """(seconds, why) until a scale-out may be tried again after some that failed; None = now.

        The first pause is a minute, each failure in a row doubles it, up to ten minutes.
        """
        failed = []
        for activity in reversed(self._all):
            if activity.desired is None or activity.status in ("InProgress", "Overridden"):
                continue
            if activity.status != "Failed":
                break
            failed.append(activity)
        if not failed:
            return None
        pause_s = RETRY.after(len(failed))
        left_s = (failed[0].ended_s or 0.0) + pause_s - now_s
        return (left_s, failed[0].message) if left_s > 0 else None

    def _read(self) -> list[ScalingActivity]:
        found = [s.document for s in self._store.select(ScalingActivity, prefix=self._prefix)]
        return sorted(found, key=lambda each: (each.began_s, each.status == "InProgress"))

    def _since_last_change(self) -> Iterator[ScalingActivity]:
        return takewhile(lambda activity: activity.not_scaled, reversed(self._all))

    def _add(self, target: ScalableTarget, **members: Any) -> None:
        activity = ScalingActivity(
            activity_id=str(uuid.uuid4()),
            account=target.account,
            resource_id=target.resource_id,
            dimension=target.dimension,
            **members,
        )
        self._store.put(activity)
        self._all.append(activity)
        for old in self._all[:-KEPT]:
            self._store.delete(ScalingActivity, old.key)
        del self._all[:-KEPT]

    def _replace(self, number: int, **members: Any) -> None:
        self._all[number] = replace(self._all[number], **members)
        self._store.put(self._all[number])
