"""Scaling policies: target tracking with its managed alarms, and step scaling.

Source: Application Auto Scaling API reference, and "Target tracking scaling policies" of its user
guide for the alarms' names and periods.
"""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

from zeropull.api.applicationautoscaling.targets import (
    WRONG_PAGE,
    forget_policy,
    is_other_namespace,
    require_target,
    target_filter,
)
from zeropull.api.cloudwatch.alarms import put_alarm
from zeropull.api.cloudwatch.queries import query_of
from zeropull.api.listing import page
from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.autoscaler.alarms import AlarmRule
from zeropull.autoscaler.step_scaling import check_steps
from zeropull.autoscaler.target_tracking import high_alarm, low_alarm
from zeropull.awsprotocol.members import MemberRules
from zeropull.errors import InvalidInput, NotFound
from zeropull.metricstore.alarm_specs import watched_id
from zeropull.metricstore.queries import check_queries
from zeropull.metricstore.scaling_metrics import metric_of, step_policy, tracking_policy
from zeropull.resources.alarms import MetricAlarm, alarm_key
from zeropull.resources.scaling import NAMESPACE, ScalableTarget, ScalingPolicy
from zeropull.statestore import Store

PAGE_SIZE = 10
TARGET_TRACKING = "TargetTrackingScaling"
STEP = "StepScaling"


class PolicyOperations:
    def __init__(self, store: Store) -> None:
        self._store = store

    def operations(self) -> tuple[Operation, ...]:
        rules = MemberRules(
            refused={"PredictiveScalingPolicyConfiguration": "endpoints have no predictive scaling"}
        )
        return (
            Operation("PutScalingPolicy", self.put, rules),
            Operation("DescribeScalingPolicies", self.describe),
            Operation("DeleteScalingPolicy", self.delete),
        )

    def put(self, call: Call, members: Members) -> Output:
        with self._store.transaction():
            target = require_target(self._store, call, members)
            stored = self._store.get(ScalingPolicy, f"{target.key}/{members['PolicyName']}")
            before = stored.document if stored is not None else None
            policy_type = _type_of(members, before)
            policy = before or _new_policy(call, target, members["PolicyName"], policy_type)
            policy = dataclasses.replace(
                policy,
                policy_type=policy_type,
                request={
                    name: value
                    for name, value in members.items()
                    if name.endswith("PolicyConfiguration")
                },
            )
            if policy_type == TARGET_TRACKING:
                self._check_tracking(policy)
                policy = self._manage_alarms(call, policy)
            else:
                check_steps(step_policy(policy))
            self._store.put(policy)
        return {"PolicyARN": policy.arn, "Alarms": self._alarms_of(policy)}

    def describe(self, call: Call, members: Members) -> Output:
        resource_id, dimension = target_filter(members)
        if is_other_namespace(members):
            return {"ScalingPolicies": []}
        names = members.get("PolicyNames")
        found = [
            policy
            for policy in self._policies(call)
            if resource_id in (None, policy.resource_id)
            and dimension in (None, policy.dimension)
            and (names is None or policy.name in names)
        ]
        chosen, token = page(
            found,
            members,
            lambda policy: (policy.resource_id, f"{policy.dimension} {policy.name}"),
            descending=False,
            default_size=PAGE_SIZE,
            token_fault=WRONG_PAGE,
        )
        return {"ScalingPolicies": [self._describe(p) for p in chosen], "NextToken": token}

    def delete(self, call: Call, members: Members) -> Output:
        with self._store.transaction():
            target = require_target(self._store, call, members)
            stored = self._store.get(ScalingPolicy, f"{target.key}/{members['PolicyName']}")
            if stored is None:
                raise NotFound(
                    f"No scaling policy found for service namespace: {NAMESPACE}, resource ID: "
                    f"{target.resource_id}, scalable dimension: {target.dimension}, policy name: "
                    f"{members['PolicyName']}"
                )
            forget_policy(self._store, stored.document, call.now_s)
        return {}

    def _check_tracking(self, policy: ScalingPolicy) -> None:
        """Raises InvalidInput for a metric that cannot be tracked or is tracked already."""
        queries = [
            query_of(_as_query(raw), f"Metrics.member.{number}", policy.account)
            for number, raw in enumerate(_customized(policy).get("Metrics") or [], 1)
        ]
        if queries:
            check_queries(queries)
            watched_id(queries)
        mine = metric_of(policy)
        for other in self._store.select(ScalingPolicy, prefix=f"{policy.key.rpartition('/')[0]}/"):
            if other.document.name == policy.name or other.document.policy_type != TARGET_TRACKING:
                continue
            if metric_of(other.document) == mine:
                raise InvalidInput(
                    "Only one TargetTrackingScaling policy for a given metric specification is "
                    f"allowed: {other.document.name!r} tracks it already."
                )

    def _manage_alarms(self, call: Call, policy: ScalingPolicy) -> ScalingPolicy:
        tracking = tracking_policy(policy)
        names = policy.alarms or tuple(
            f"TargetTracking-{policy.resource_id}-Alarm{which}-{uuid.uuid4()}"
            for which in ("High", "Low")
        )
        metric = metric_of(policy)
        for name, rule in zip(names, (high_alarm(tracking), low_alarm(tracking)), strict=True):
            put_alarm(
                self._store,
                call,
                {
                    "AlarmName": name,
                    "AlarmDescription": (
                        f"DO NOT EDIT OR DELETE. For TargetTrackingScaling policy {policy.arn}."
                    ),
                    "AlarmActions": [policy.arn],
                    **metric.alarm_members(),
                    **_rule_members(rule),
                },
                owner=policy.arn,
            )
        return dataclasses.replace(policy, alarms=names)

    def _policies(self, call: Call) -> list[ScalingPolicy]:
        return [p.document for p in self._store.select(ScalingPolicy, prefix=f"{call.account}/")]

    def _describe(self, policy: ScalingPolicy) -> dict[str, Any]:
        return {
            "PolicyARN": policy.arn,
            "PolicyName": policy.name,
            "ServiceNamespace": NAMESPACE,
            "ResourceId": policy.resource_id,
            "ScalableDimension": policy.dimension,
            "PolicyType": policy.policy_type,
            **policy.request,
            "Alarms": self._alarms_of(policy),
            "CreationTime": policy.created_s,
        }

    def _alarms_of(self, policy: ScalingPolicy) -> list[dict[str, str]]:
        """The managed alarms, or for a step policy those whose action it is."""
        if policy.policy_type == TARGET_TRACKING:
            found = [
                self._store.get(MetricAlarm, alarm_key(policy.account, n)) for n in policy.alarms
            ]
            alarms = [stored.document for stored in found if stored is not None]
        else:
            everything = self._store.select(MetricAlarm, prefix=f"{policy.account}/")
            alarms = [
                stored.document
                for stored in everything
                if policy.arn in (stored.document.request.get("AlarmActions") or [])
            ]
        return [{"AlarmName": alarm.name, "AlarmARN": alarm.arn} for alarm in alarms]


def _type_of(members: Members, before: ScalingPolicy | None) -> str:
    given = members.get("PolicyType") or (before.policy_type if before else STEP)
    if given not in (TARGET_TRACKING, STEP):
        raise InvalidInput(
            f"1 validation error detected: Value '{given}' at 'policyType' failed to satisfy "
            "constraint: Member must satisfy enum value set: [StepScaling, TargetTrackingScaling]"
        )
    if before is not None and before.policy_type != given:
        raise InvalidInput(
            f"The policy {before.name!r} is a {before.policy_type} policy: delete it first."
        )
    wanted = f"{given}PolicyConfiguration"
    if members.get(wanted) is None:
        raise InvalidInput(f"A {given} policy needs {wanted}.")
    return str(given)


def _new_policy(call: Call, target: ScalableTarget, name: str, policy_type: str) -> ScalingPolicy:
    arn = (
        f"arn:aws:autoscaling:{call.region}:{call.account}:scalingPolicy:{uuid.uuid4()}:resource/"
        f"{NAMESPACE}/{target.resource_id}:policyName/{name}"
    )
    return ScalingPolicy(
        call.account, target.resource_id, target.dimension, name, arn, policy_type, call.now_s
    )


def _customized(policy: ScalingPolicy) -> dict[str, Any]:
    config = policy.request["TargetTrackingScalingPolicyConfiguration"]
    found: dict[str, Any] = config.get("CustomizedMetricSpecification") or {}
    return found


def _as_query(raw: dict[str, Any]) -> dict[str, Any]:
    """TargetTrackingMetricDataQuery has no period of its own: the policy sets it."""
    stat = raw.get("MetricStat")
    return {**raw, "MetricStat": {"Period": 60, **stat}} if stat is not None else raw


def _rule_members(rule: AlarmRule) -> dict[str, Any]:
    return {
        "ComparisonOperator": rule.comparison,
        "Threshold": rule.threshold,
        "EvaluationPeriods": rule.evaluation_periods,
        "DatapointsToAlarm": rule.datapoints_to_alarm,
    }
