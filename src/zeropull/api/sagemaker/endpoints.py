"""CreateEndpoint, DescribeEndpoint, ListEndpoints, UpdateEndpoint,
UpdateEndpointWeightsAndCapacities, DeleteEndpoint: desired state; reconcilers do the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from zeropull.api.listing import page_by_creation_or_name
from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.api.sagemaker.deployments import COUNT, WEIGHT, deployment_of, policy_of
from zeropull.api.sagemaker.deployments import RULES as DEPLOYMENT_RULES
from zeropull.api.sagemaker.descriptions import describe_endpoint
from zeropull.api.sagemaker.endpoint_configs import require_endpoint_config
from zeropull.api.sagemaker.models import require_model
from zeropull.api.tagging import set_initial_tags
from zeropull.awsprotocol.arns import sagemaker_arn
from zeropull.awsprotocol.members import MemberRules
from zeropull.errors import AlreadyExists, Conflict, InvalidInput, NotFound
from zeropull.resources.capacity import CapacityChange, with_capacity
from zeropull.resources.documents import new_uid
from zeropull.resources.endpoint_configs import EndpointConfig
from zeropull.resources.endpoints import Deployment, Endpoint, EndpointStatus, endpoint_key
from zeropull.resources.models import Model
from zeropull.statestore import Store

CAPACITY_RULES = MemberRules(
    refused={
        "DesiredWeightsAndCapacities.ServerlessUpdateConfig": "variants run on instances",
    }
)
# From these, UpdateEndpoint goes ahead; UpdateRollbackFailed is repaired by it.
_UPDATABLE = (
    EndpointStatus.IN_SERVICE,
    EndpointStatus.OUT_OF_SERVICE,
    EndpointStatus.UPDATE_ROLLBACK_FAILED,
)


@dataclass(frozen=True, slots=True)
class EndpointHooks:
    """Calls of other services, inside the operation's transaction.

    `before_update` gets the endpoint and its next deployment, and raises to refuse (a scalable
    target forbids that its variant goes); `on_delete` gets the endpoint and the time, and lets go
    of what belongs to it.
    """

    before_update: Callable[[Endpoint, Deployment], None] = lambda endpoint, deployment: None
    on_delete: Callable[[Endpoint, float], None] = lambda endpoint, now_s: None


class EndpointOperations:
    def __init__(self, store: Store, hooks: EndpointHooks | None = None) -> None:
        self._store = store
        self._hooks = hooks or EndpointHooks()

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("CreateEndpoint", self.create, DEPLOYMENT_RULES),
            Operation("DescribeEndpoint", self.describe),
            Operation("ListEndpoints", self.list),
            Operation("UpdateEndpoint", self.update, DEPLOYMENT_RULES),
            Operation(
                "UpdateEndpointWeightsAndCapacities",
                self.update_weights_and_capacities,
                CAPACITY_RULES,
            ),
            Operation("DeleteEndpoint", self.delete),
        )

    def create(self, call: Call, members: Members) -> Output:
        name = members["EndpointName"]
        arn = sagemaker_arn(call.region, call.account, "endpoint", name)
        deployment_config = members.get("DeploymentConfig")
        policy = policy_of(deployment_config)
        with self._store.transaction():
            existing = self._store.get(Endpoint, endpoint_key(call.account, name))
            if existing is not None:
                raise AlreadyExists(
                    f'Cannot create already existing endpoint "{existing.document.arn}".'
                )
            config = require_endpoint_config(self._store, call, members["EndpointConfigName"])
            _refuse_policy(config, deployment_config)
            deployment = deployment_of(
                config, lambda model: self._model(call, model), policy, call.now_s
            )
            endpoint = Endpoint(
                account=call.account,
                name=name,
                arn=arn,
                uid=new_uid(),
                status=EndpointStatus.CREATING,
                created_s=call.now_s,
                modified_s=call.now_s,
                pending=deployment,
                last_deployment_config=deployment_config,
            )
            self._store.put(endpoint, expected_version=0)
            set_initial_tags(self._store, arn, members.get("Tags", []))
        return {"EndpointArn": arn}

    def describe(self, call: Call, members: Members) -> Output:
        return describe_endpoint(self._required(call, members["EndpointName"]))

    def list(self, call: Call, members: Members) -> Output:
        before = members.get("LastModifiedTimeBefore", float("inf"))
        after = members.get("LastModifiedTimeAfter", float("-inf"))
        wanted = members.get("StatusEquals")
        found = [
            stored.document
            for stored in self._store.select(Endpoint, prefix=f"{call.account}/")
            if after <= stored.document.modified_s < before
            and (wanted is None or stored.document.status == wanted)
        ]
        endpoints, token = page_by_creation_or_name(
            found,
            members,
            name=lambda e: e.name,
            created_s=lambda e: e.created_s,
            status=lambda e: e.status.value,
        )
        summaries = [
            {
                "EndpointName": e.name,
                "EndpointArn": e.arn,
                "CreationTime": e.created_s,
                "LastModifiedTime": e.modified_s,
                "EndpointStatus": e.status.value,
            }
            for e in endpoints
        ]
        return {"Endpoints": summaries, "NextToken": token}

    def update(self, call: Call, members: Members) -> Output:
        given = members.get("DeploymentConfig")
        retain = _retained(members)
        with self._store.transaction():
            endpoint = self._required(call, members["EndpointName"])
            _refuse_in_progress(endpoint)
            may_update = endpoint.status in _UPDATABLE or endpoint.is_stuck
            if not may_update or endpoint.current is None:
                raise Conflict(
                    f'Cannot update endpoint "{endpoint.arn}" while its status is '
                    f"{endpoint.status}: it can only be deleted."
                )
            config = require_endpoint_config(self._store, call, members["EndpointConfigName"])
            if members.get("RetainDeploymentConfig"):
                if given is not None:
                    raise InvalidInput(
                        "DeploymentConfig cannot be given when RetainDeploymentConfig is true."
                    )
                given = endpoint.last_deployment_config
            if config.is_component_based != endpoint.current.is_component_based:
                raise InvalidInput(
                    "An endpoint with inference components cannot become one without, nor the "
                    "other way round."
                )
            _refuse_policy(config, given)
            pending = deployment_of(
                config,
                lambda model: self._model(call, model),
                policy_of(given),
                call.now_s,
                retain=retain,
                previous=endpoint.current,
            )
            self._hooks.before_update(endpoint, pending)
            self._store.put(
                replace(
                    endpoint,
                    status=EndpointStatus.UPDATING,
                    modified_s=call.now_s,
                    pending=pending,
                    failure_reason="",
                    last_deployment_config=given,
                )
            )
        return {"EndpointArn": endpoint.arn}

    def update_weights_and_capacities(self, call: Call, members: Members) -> Output:
        changes: dict[str, CapacityChange] = {}
        for wanted in members["DesiredWeightsAndCapacities"]:
            name = wanted["VariantName"]
            if name in changes:
                raise InvalidInput(f'The variant name "{name}" was non-unique within the request.')
            changes[name] = CapacityChange(
                wanted.get("DesiredInstanceCount"), wanted.get("DesiredWeight")
            )
        with self._store.transaction():
            endpoint = self._required(call, members["EndpointName"])
            changed = with_capacity(endpoint, changes, call.now_s)
            assert changed.current is not None
            _refuse_zero(changed, changes)
            self._store.put(changed)
        return {"EndpointArn": endpoint.arn}

    def delete(self, call: Call, members: Members) -> Output:
        """Mark the endpoint. Reconcilers end what runs, and remove the document last."""
        with self._store.transaction():
            endpoint = self._required(call, members["EndpointName"])
            _refuse_in_progress(endpoint)
            self._store.put(
                replace(endpoint, status=EndpointStatus.DELETING, modified_s=call.now_s)
            )
            self._hooks.on_delete(endpoint, call.now_s)
        return None

    def _required(self, call: Call, name: str) -> Endpoint:
        found = self._store.get(Endpoint, endpoint_key(call.account, name))
        if found is None:
            arn = sagemaker_arn(call.region, call.account, "endpoint", name)
            raise NotFound(f'Could not find endpoint "{arn}".')
        return found.document

    def _model(self, call: Call, name: str) -> Model:
        return require_model(self._store, call, name)


def _refuse_in_progress(endpoint: Endpoint) -> None:
    if endpoint.status.is_in_progress and not endpoint.is_stuck:
        raise Conflict(f'Cannot update in-progress endpoint "{endpoint.arn}".')


def _refuse_policy(config: EndpointConfig, given: Members | None) -> None:
    if config.is_component_based and given is not None:
        raise InvalidInput(
            "DeploymentConfig is not supported for an endpoint with inference components: a new "
            "endpoint configuration is in force at once, and copies move before their instances "
            "go. UpdateInferenceComponent takes a DeploymentConfig for each component."
        )


def _refuse_zero(endpoint: Endpoint, changes: dict[str, CapacityChange]) -> None:
    assert endpoint.current is not None
    for variant in endpoint.current.variants:
        if variant.name not in changes or variant.spec.model_name is None:
            continue
        if variant.desired_instances < 1:
            raise InvalidInput(
                f'The desired instance count of variant "{variant.name}" must be at least 1: only '
                "endpoints with inference components can have none."
            )
    if not any(v.desired_weight > 0 for v in endpoint.current.variants):
        raise InvalidInput("At least one production variant needs a weight above 0.")


def _retained(members: dict[str, Any]) -> set[str]:
    excluded = {
        item["VariantPropertyType"] for item in members.get("ExcludeRetainedVariantProperties", [])
    }
    if "DataCaptureConfig" in excluded:
        raise InvalidInput(
            "ExcludeRetainedVariantProperties with DataCaptureConfig is not supported here."
        )
    if not members.get("RetainAllVariantProperties"):
        if excluded:
            raise InvalidInput(
                "ExcludeRetainedVariantProperties goes with RetainAllVariantProperties true."
            )
        return set()
    return {COUNT, WEIGHT} - excluded
