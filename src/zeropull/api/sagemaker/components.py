"""CreateInferenceComponent, DescribeInferenceComponent, ListInferenceComponents,
UpdateInferenceComponent, UpdateInferenceComponentRuntimeConfig, DeleteInferenceComponent.

A component that is being created or updated is neither updated nor deleted, as on SageMaker.
Deleting its endpoint, in contrast to SageMaker, deletes it whatever its state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from zeropull.api.listing import page_by_creation_or_name
from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.api.sagemaker.component_specs import RULES, UPDATE_RULES, policy_of, spec_of
from zeropull.api.sagemaker.descriptions import describe_image, shortened
from zeropull.api.sagemaker.models import require_model
from zeropull.api.tagging import set_initial_tags
from zeropull.awsprotocol.arns import sagemaker_arn
from zeropull.errors import AlreadyExists, Conflict, InvalidInput, NotFound
from zeropull.placement.capacity import Requirement, Shape, never_fits
from zeropull.resources.components import (
    ComponentSpec,
    ComponentStatus,
    ComponentVersion,
    InferenceComponent,
    component_key,
    refuse_busy,
    with_copies,
)
from zeropull.resources.documents import new_uid
from zeropull.resources.endpoints import (
    Deployment,
    Endpoint,
    EndpointStatus,
    Variant,
    endpoint_key,
)
from zeropull.resources.instances import CopyRecord, Instance
from zeropull.resources.models import Model
from zeropull.statestore import Store

NO_ROOM = (
    "There is not enough hardware resources on the instances for this endpoint to create a copy of "
    "the inference component."
)
_SERVING = (EndpointStatus.IN_SERVICE, EndpointStatus.UPDATE_ROLLBACK_FAILED)


class ComponentOperations:
    """`shape_of` gives the room of an empty instance of a type. `on_delete` gets a component and
    the time. It removes what other services keep about it, inside the operation's transaction."""

    def __init__(
        self,
        store: Store,
        shape_of: Callable[[str], Shape | None],
        on_delete: Callable[[InferenceComponent, float], None] = lambda component, now_s: None,
    ) -> None:
        self._store = store
        self._shape_of = shape_of
        self._on_delete = on_delete

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("CreateInferenceComponent", self.create, RULES),
            Operation("DescribeInferenceComponent", self.describe),
            Operation("ListInferenceComponents", self.list),
            Operation("UpdateInferenceComponent", self.update, UPDATE_RULES),
            Operation("UpdateInferenceComponentRuntimeConfig", self.update_runtime_config),
            Operation("DeleteInferenceComponent", self.delete),
        )

    def create(self, call: Call, members: Members) -> Output:
        name = members["InferenceComponentName"]
        arn = sagemaker_arn(call.region, call.account, "inference-component", name)
        given = members.get("Specification")
        if given is None:
            raise InvalidInput("CreateInferenceComponent needs a Specification.")
        copies = members.get("RuntimeConfig", {}).get("CopyCount", 0)
        if copies < 1:
            raise InvalidInput("Inference components copy count an integer larger than 0")
        with self._store.transaction():
            if self._store.get(InferenceComponent, component_key(call.account, name)) is not None:
                raise AlreadyExists(f'Cannot create already existing inference component "{arn}".')
            endpoint = self._endpoint(call, members["EndpointName"])
            variant = _variant_of(endpoint, members.get("VariantName"))
            spec = spec_of(given, lambda model: self._model(call, model))
            self._refuse_unfit(spec, variant)
            component = InferenceComponent(
                account=call.account,
                name=name,
                arn=arn,
                uid=new_uid(),
                endpoint_uid=endpoint.uid,
                endpoint=endpoint.name,
                endpoint_arn=endpoint.arn,
                variant=variant.name,
                status=ComponentStatus.CREATING,
                created_s=call.now_s,
                modified_s=call.now_s,
                desired_copies=copies,
                current=ComponentVersion(spec, call.now_s),
            )
            self._store.put(component, expected_version=0)
            set_initial_tags(self._store, arn, members.get("Tags", []))
        return {"InferenceComponentArn": arn}

    def describe(self, call: Call, members: Members) -> Output:
        component = self._required(call, members["InferenceComponentName"])
        return describe_component(component, self._placement(component))

    def list(self, call: Call, members: Members) -> Output:
        before = members.get("LastModifiedTimeBefore", float("inf"))
        after = members.get("LastModifiedTimeAfter", float("-inf"))
        found = [
            stored.document
            for stored in self._store.select(InferenceComponent, prefix=f"{call.account}/")
            if after <= stored.document.modified_s < before
            and members.get("StatusEquals") in (None, stored.document.status)
            and members.get("EndpointNameEquals") in (None, stored.document.endpoint)
            and members.get("VariantNameEquals") in (None, stored.document.variant)
        ]
        components, token = page_by_creation_or_name(
            found,
            members,
            name=lambda c: c.name,
            created_s=lambda c: c.created_s,
            status=lambda c: c.status.value,
        )
        summaries = [
            {
                "InferenceComponentName": c.name,
                "InferenceComponentArn": c.arn,
                "EndpointName": c.endpoint,
                "EndpointArn": c.endpoint_arn,
                "VariantName": c.variant,
                "InferenceComponentStatus": c.status.value,
                "CreationTime": c.created_s,
                "LastModifiedTime": c.modified_s,
            }
            for c in components
        ]
        return {"InferenceComponents": summaries, "NextToken": token}

    def update(self, call: Call, members: Members) -> Output:
        given, runtime = members.get("Specification"), members.get("RuntimeConfig")
        if given is None and runtime is None:
            raise InvalidInput("UpdateInferenceComponent needs a Specification or a RuntimeConfig.")
        policy = policy_of(members.get("DeploymentConfig"))
        with self._store.transaction():
            component = self._required(call, members["InferenceComponentName"])
            refuse_busy(component, "update")
            endpoint = self._endpoint(call, component.endpoint)
            changed, status = component, ComponentStatus.UPDATING
            if runtime is not None:
                changed = replace(changed, desired_copies=runtime["CopyCount"])
            if given is not None:
                spec = spec_of(given, lambda model: self._model(call, model))
                self._refuse_unfit(spec, _variant_of(endpoint, component.variant))
                version = ComponentVersion(spec, call.now_s, policy=policy)
                changed = replace(changed, pending=version)
                if component.status is ComponentStatus.FAILED:
                    # Nothing of it serves: it is simply created again.
                    status = ComponentStatus.CREATING
                    changed = replace(
                        changed,
                        current=version,
                        pending=None,
                        retired=(*component.retired, component.current),
                    )
            elif component.status is ComponentStatus.FAILED:
                raise Conflict(
                    f'Cannot update inference component "{component.arn}" while its status is '
                    "Failed: give a Specification, or delete it."
                )
            self._store.put(
                replace(
                    changed,
                    status=status,
                    modified_s=call.now_s,
                    failure_reason="",
                    cause="",
                    cause_s=None,
                    last_deployment_config=members.get("DeploymentConfig"),
                )
            )
        return {"InferenceComponentArn": component.arn}

    def update_runtime_config(self, call: Call, members: Members) -> Output:
        copies = members["DesiredRuntimeConfig"]["CopyCount"]
        with self._store.transaction():
            component = self._required(call, members["InferenceComponentName"])
            self._store.put(with_copies(component, copies, call.now_s))
        return {"InferenceComponentArn": component.arn}

    def delete(self, call: Call, members: Members) -> Output:
        """Marks it; reconcilers end its copies, and remove the document last."""
        with self._store.transaction():
            component = self._required(call, members["InferenceComponentName"])
            refuse_busy(component, "delete")
            self._store.put(
                replace(component, status=ComponentStatus.DELETING, modified_s=call.now_s)
            )
            self._on_delete(component, call.now_s)
        return None

    def _refuse_unfit(self, spec: ComponentSpec, variant: Variant) -> None:
        """Raises InvalidInput, with the arithmetic, when no empty instance could take a copy."""
        shape = self._shape_of(variant.spec.instance_type)
        if shape is None:
            return
        why = never_fits(_need(spec), shape)
        if why is not None:
            raise InvalidInput(f"{NO_ROOM} {why[0].upper()}{why[1:]}.")

    def _placement(self, component: InferenceComponent) -> dict[str, int]:
        """Serving copies by instance type."""
        types = {
            s.document.instance_id: s.document.instance_type
            for s in self._store.select(Instance, endpoint_uid=component.endpoint_uid)
        }
        counts: dict[str, int] = {}
        for stored in self._store.select(CopyRecord, endpoint_uid=component.endpoint_uid):
            copy = stored.document
            if copy.component == component.name and copy.state == "healthy":
                name = types.get(copy.instance_id, "")
                counts[name] = counts.get(name, 0) + 1
        return counts

    def _endpoint(self, call: Call, name: str) -> Endpoint:
        found = self._store.get(Endpoint, endpoint_key(call.account, name))
        if found is None:
            arn = sagemaker_arn(call.region, call.account, "endpoint", name)
            raise NotFound(f'Could not find endpoint "{arn}".')
        endpoint = found.document
        if endpoint.newest is None or not endpoint.newest.is_component_based:
            raise InvalidInput(
                f'Endpoint "{endpoint.arn}" serves models: inference components need an endpoint '
                "whose production variant has no ModelName."
            )
        if endpoint.status not in _SERVING:
            raise Conflict(
                f'Endpoint "{endpoint.arn}" must be InService for its inference components to '
                f"change; it is {endpoint.status}."
            )
        return endpoint

    def _required(self, call: Call, name: str) -> InferenceComponent:
        found = self._store.get(InferenceComponent, component_key(call.account, name))
        if found is None:
            arn = sagemaker_arn(call.region, call.account, "inference-component", name)
            raise NotFound(f'Could not find inference component "{arn}".')
        return found.document

    def _model(self, call: Call, name: str) -> Model:
        return require_model(self._store, call, name)


def refuse_unfit_update(
    store: Store,
    shape_of: Callable[[str], Shape | None],
    endpoint: Endpoint,
    deployment: Deployment,
) -> None:
    """Raises InvalidInput when an update of the endpoint would leave a component of it without a
    variant, or on instances that are too small for a copy. In a transaction."""
    for stored in store.select(InferenceComponent, endpoint_uid=endpoint.uid):
        component = stored.document
        variant = deployment.variant(component.variant)
        if variant is None:
            raise InvalidInput(
                f'Inference component "{component.name}" belongs to the variant '
                f'"{component.variant}", which the new endpoint configuration does not have.'
            )
        shape = shape_of(variant.spec.instance_type)
        why = never_fits(_need(component.newest.spec), shape) if shape is not None else None
        if why is not None:
            raise InvalidInput(f'Inference component "{component.name}" would not fit: {why}.')


def describe_component(component: InferenceComponent, placement: dict[str, int]) -> dict[str, Any]:
    """DescribeInferenceComponent's output. While copies wait, FailureReason says for what."""
    given = dict(component.current.spec.request)
    if "Container" in given:
        container = {key: value for key, value in given["Container"].items() if key != "Image"}
        if component.current.image is not None:
            container["DeployedImage"] = describe_image(component.current.image)
        given["Container"] = container
    return {
        "InferenceComponentName": component.name,
        "InferenceComponentArn": component.arn,
        "EndpointName": component.endpoint,
        "EndpointArn": component.endpoint_arn,
        "VariantName": component.variant,
        "FailureReason": shortened(component.failure_reason or component.waiting) or None,
        "Specification": given,
        "RuntimeConfig": {
            "DesiredCopyCount": component.desired_copies,
            "CurrentCopyCount": component.current_copies,
            "PlacementStatus": [
                {"InstanceType": name, "CurrentCopyCount": count}
                for name, count in sorted(placement.items())
            ]
            or None,
        },
        "CreationTime": component.created_s,
        "LastModifiedTime": component.modified_s,
        "InferenceComponentStatus": component.status.value,
        "LastDeploymentConfig": component.last_deployment_config,
    }


def _need(spec: ComponentSpec) -> Requirement:
    return Requirement(spec.cpu_milli, spec.memory_bytes, spec.accelerators)


def _variant_of(endpoint: Endpoint, name: str | None) -> Variant:
    newest = endpoint.newest
    assert newest is not None
    variant = newest.variants[0] if name is None else newest.variant(name)
    if variant is None:
        raise InvalidInput(
            f'The variant name "{name}" is not present within endpoint configuration '
            f'"{newest.config_name}".'
        )
    return variant
