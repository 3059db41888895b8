"""Scalable targets and their tags.

Source: Application Auto Scaling API reference, version 2016-02-06.
"""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

from zeropull.api.cloudwatch.alarms import delete_alarm
from zeropull.api.listing import page
from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.awsprotocol.faults import ApiFault
from zeropull.errors import InvalidInput, NotFound
from zeropull.resources.components import InferenceComponent, component_key
from zeropull.resources.endpoints import Endpoint, endpoint_key
from zeropull.resources.scaling import (
    COMPONENT_DIMENSION,
    NAMESPACE,
    VARIANT_DIMENSION,
    ScalableTarget,
    ScalingPolicy,
    ScheduledAction,
    component_of,
    target_key,
    variant_of,
)
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store

PAGE_SIZE = 50
WRONG_PAGE = "InvalidNextTokenException"
MAX_TAGS = 50
_DIMENSIONS = frozenset({VARIANT_DIMENSION, COMPONENT_DIMENSION})


class TargetOperations:
    def __init__(self, store: Store) -> None:
        self._store = store

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("RegisterScalableTarget", self.register),
            Operation("DescribeScalableTargets", self.describe),
            Operation("DeregisterScalableTarget", self.deregister),
            Operation("TagResource", self.tag),
            Operation("UntagResource", self.untag),
            Operation("ListTagsForResource", self.list_tags),
        )

    def register(self, call: Call, members: Members) -> Output:
        """Create or change; the reconcilers move a capacity that is outside of new bounds."""
        check_resource(self._store, call, members)
        resource_id, dimension = members["ResourceId"], members["ScalableDimension"]
        with self._store.transaction():
            stored = self._store.get(
                ScalableTarget, target_key(call.account, resource_id, dimension)
            )
            if stored is not None:
                target = stored.document
            else:
                if members.get("MinCapacity") is None or members.get("MaxCapacity") is None:
                    raise InvalidInput(
                        "MinCapacity and MaxCapacity are required to register a scalable target."
                    )
                target = _new_target(call, members)
            target = _changed(target, members)
            self._store.put(target)
            if tags := members.get("Tags"):
                _put_tags(self._store, target.arn, tags)
        return {"ScalableTargetARN": target.arn}

    def describe(self, call: Call, members: Members) -> Output:
        _dimension_needs_resource(members, "ResourceIds")
        if is_other_namespace(members):
            return {"ScalableTargets": []}
        wanted = members.get("ResourceIds")
        found = [
            target
            for target in _targets(self._store, call)
            if (wanted is None or target.resource_id in wanted)
            and members.get("ScalableDimension") in (None, target.dimension)
        ]
        chosen, token = page(
            found,
            members,
            lambda target: (target.resource_id, target.dimension),
            descending=False,
            default_size=PAGE_SIZE,
            token_fault=WRONG_PAGE,
        )
        return {"ScalableTargets": [_describe(target) for target in chosen], "NextToken": token}

    def deregister(self, call: Call, members: Members) -> Output:
        with self._store.transaction():
            forget_target(self._store, require_target(self._store, call, members), call.now_s)
        return {}

    def tag(self, call: Call, members: Members) -> Output:
        with self._store.transaction():
            _put_tags(self._store, self._tagged(call, members), members["Tags"])
        return {}

    def untag(self, call: Call, members: Members) -> Output:
        arn = self._tagged(call, members)
        gone = set(members["TagKeys"])
        with self._store.transaction():
            kept = {key: value for key, value in _tags(self._store, arn).items() if key not in gone}
            self._store.put(ResourceTags(arn, kept))
        return {}

    def list_tags(self, call: Call, members: Members) -> Output:
        return {"Tags": _tags(self._store, self._tagged(call, members))}

    def _tagged(self, call: Call, members: Members) -> str:
        arn = str(members["ResourceARN"])
        if not any(target.arn == arn for target in _targets(self._store, call)):
            raise ApiFault(
                "ResourceNotFoundException", f"No scalable target has the ARN {arn}.", 400,
                {"ResourceName": arn},
            )  # fmt: skip
        return arn


def check_namespace(members: Members) -> None:
    """Raises InvalidInput for every other namespace, by name."""
    if members["ServiceNamespace"] != NAMESPACE:
        raise InvalidInput(
            f"The service namespace {members['ServiceNamespace']!r} is not served here: only "
            f"{NAMESPACE!r} is."
        )


def check_resource(store: Store, call: Call, members: Members) -> None:
    """Raises InvalidInput when no such variant or component can be scaled."""
    check_namespace(members)
    dimension, resource_id = members["ScalableDimension"], members["ResourceId"]
    if dimension not in _DIMENSIONS:
        raise InvalidInput(
            f"The scalable dimension {dimension!r} is not served here: "
            f"{', '.join(sorted(_DIMENSIONS))}."
        )
    if dimension == COMPONENT_DIMENSION:
        _check_component(store, call, resource_id)
        return
    endpoint_name, variant = variant_of(resource_id)
    if not endpoint_name:
        raise InvalidInput(
            f"Unsupported resource ID {resource_id!r} for {dimension}: expected "
            "endpoint/<endpoint name>/variant/<variant name>."
        )
    stored = store.get(Endpoint, endpoint_key(call.account, endpoint_name))
    newest = stored.document.newest if stored is not None else None
    if newest is None or newest.variant(variant) is None:
        raise InvalidInput(f"There is no variant {variant!r} of an endpoint {endpoint_name!r}.")


def _check_component(store: Store, call: Call, resource_id: str) -> None:
    name = component_of(resource_id)
    if not name:
        raise InvalidInput(
            f"Unsupported resource ID {resource_id!r} for {COMPONENT_DIMENSION}: expected "
            "inference-component/<inference component name>."
        )
    if store.get(InferenceComponent, component_key(call.account, name)) is None:
        raise InvalidInput(f"There is no inference component {name!r}.")


def require_target(store: Store, call: Call, members: Members) -> ScalableTarget:
    """Raises NotFound with the text that AWS has for it."""
    check_namespace(members)
    resource_id, dimension = members["ResourceId"], members["ScalableDimension"]
    stored = store.get(ScalableTarget, target_key(call.account, resource_id, dimension))
    if stored is None:
        raise NotFound(
            f"No scalable target found for service namespace: {NAMESPACE}, resource ID: "
            f"{resource_id}, scalable dimension: {dimension}"
        )
    return stored.document


def forget_target(store: Store, target: ScalableTarget, now_s: float) -> None:
    """The target with its policies, their managed alarms and its schedules. In a transaction."""
    for policy in store.select(ScalingPolicy, prefix=f"{target.key}/"):
        forget_policy(store, policy.document, now_s)
    for action in store.select(ScheduledAction, prefix=f"{target.key}/"):
        store.delete(ScheduledAction, action.document.key)
    store.delete(ResourceTags, target.arn)
    store.delete(ScalableTarget, target.key)


def forget_policy(store: Store, policy: ScalingPolicy, now_s: float) -> None:
    """The policy and the alarms that it manages, which say so in their history; alarms of a step
    policy are the user's. In a transaction."""
    for name in policy.alarms:
        delete_alarm(store, policy.account, name, now_s)
    store.delete(ScalingPolicy, policy.key)


def is_other_namespace(members: Members) -> bool:
    """Whether a Describe asks for another service, of which nothing is registered here."""
    return bool(members["ServiceNamespace"] != NAMESPACE)


def target_filter(members: Members) -> tuple[str | None, str | None]:
    """(resource id, dimension) of a Describe; a dimension goes with a resource id only."""
    _dimension_needs_resource(members, "ResourceId")
    return members.get("ResourceId"), members.get("ScalableDimension")


def _new_target(call: Call, members: Members) -> ScalableTarget:
    return ScalableTarget(
        account=call.account,
        resource_id=members["ResourceId"],
        dimension=members["ScalableDimension"],
        minimum=members["MinCapacity"],
        maximum=members["MaxCapacity"],
        arn=(
            f"arn:aws:application-autoscaling:{call.region}:{call.account}:scalable-target/"
            f"{uuid.uuid4().hex}"
        ),
        created_s=call.now_s,
        role_arn=(
            f"arn:aws:iam::{call.account}:role/aws-service-role/"
            "sagemaker.application-autoscaling.amazonaws.com/"
            "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint"
        ),
    )


def check_capacities(dimension: str, minimum: int | None, maximum: int | None) -> None:
    """Raises InvalidInput for a bound that the dimension cannot have; None is not given."""
    for name, value in (("MinCapacity", minimum), ("MaxCapacity", maximum)):
        if value is not None and value < 1 and dimension == VARIANT_DIMENSION:
            raise InvalidInput(
                f"{name} {value} is below 1: only inference components can have no copies."
            )
        if value is not None and value < 0:
            raise InvalidInput(f"{name} {value} is below 0.")


def _changed(target: ScalableTarget, members: Members) -> ScalableTarget:
    suspended = members.get("SuspendedState") or {}
    minimum = members.get("MinCapacity", target.minimum)
    maximum = members.get("MaxCapacity", target.maximum)
    check_capacities(target.dimension, minimum, maximum)
    if minimum > maximum:
        raise InvalidInput(
            f"Maximum capacity {maximum} cannot be less than minimum capacity {minimum}."
        )
    return dataclasses.replace(
        target,
        minimum=minimum,
        maximum=maximum,
        role_arn=members.get("RoleARN", target.role_arn),
        scale_in_suspended=suspended.get("DynamicScalingInSuspended", target.scale_in_suspended),
        scale_out_suspended=suspended.get("DynamicScalingOutSuspended", target.scale_out_suspended),
        schedule_suspended=suspended.get("ScheduledScalingSuspended", target.schedule_suspended),
    )


def _describe(target: ScalableTarget) -> dict[str, Any]:
    return {
        "ServiceNamespace": NAMESPACE,
        "ResourceId": target.resource_id,
        "ScalableDimension": target.dimension,
        "MinCapacity": target.minimum,
        "MaxCapacity": target.maximum,
        "RoleARN": target.role_arn,
        "CreationTime": target.created_s,
        "SuspendedState": {
            "DynamicScalingInSuspended": target.scale_in_suspended,
            "DynamicScalingOutSuspended": target.scale_out_suspended,
            "ScheduledScalingSuspended": target.schedule_suspended,
        },
        "ScalableTargetARN": target.arn,
    }


def _targets(store: Store, call: Call) -> list[ScalableTarget]:
    return [each.document for each in store.select(ScalableTarget, prefix=f"{call.account}/")]


def _tags(store: Store, arn: str) -> dict[str, str]:
    stored = store.get(ResourceTags, arn)
    return dict(stored.document.tags) if stored is not None else {}


def _put_tags(store: Store, arn: str, tags: dict[str, str]) -> None:
    merged = _tags(store, arn) | tags
    if len(merged) > MAX_TAGS:
        raise ApiFault(
            "TooManyTagsException", f"A scalable target has at most {MAX_TAGS} tags.", 400,
            {"ResourceName": arn},
        )  # fmt: skip
    store.put(ResourceTags(arn, merged))


def _dimension_needs_resource(members: Members, name: str) -> None:
    if members.get("ScalableDimension") is not None and not members.get(name):
        raise InvalidInput(f"A ScalableDimension needs a {name.removesuffix('s')}.")
