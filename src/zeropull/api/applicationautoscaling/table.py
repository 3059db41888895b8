"""The operations of Application Auto Scaling as one table."""

from __future__ import annotations

from zeropull.api.applicationautoscaling.activities import ActivityOperations
from zeropull.api.applicationautoscaling.policies import PolicyOperations
from zeropull.api.applicationautoscaling.schedules import ScheduleOperations
from zeropull.api.applicationautoscaling.targets import TargetOperations, forget_target
from zeropull.api.operations import OperationTable
from zeropull.errors import InvalidInput
from zeropull.resources.components import InferenceComponent
from zeropull.resources.endpoints import Deployment, Endpoint
from zeropull.resources.scaling import COMPONENT_DIMENSION, ScalableTarget, target_key
from zeropull.statestore import Store


def autoscaling_table(store: Store) -> OperationTable:
    """Targets, policies and schedules in `store`; the reconcilers decide and act."""
    return OperationTable(
        "application-autoscaling",
        (
            *TargetOperations(store).operations(),
            *PolicyOperations(store).operations(),
            *ScheduleOperations(store).operations(),
            *ActivityOperations(store).operations(),
        ),
    )


def let_go_of_endpoint(store: Store, endpoint: Endpoint, now_s: float) -> None:
    """Deregister every target of an endpoint that is being deleted. In a transaction."""
    for stored in store.select(ScalableTarget, prefix=f"{endpoint.account}/"):
        if stored.document.endpoint_and_variant[0] == endpoint.name:
            forget_target(store, stored.document, now_s)
    for component in store.select(InferenceComponent, endpoint_uid=endpoint.uid):
        let_go_of_component(store, component.document, now_s)


def let_go_of_component(store: Store, component: InferenceComponent, now_s: float) -> None:
    """Deregister the target of a component that is being deleted. In a transaction."""
    resource_id = f"inference-component/{component.name}"
    key = target_key(component.account, resource_id, COMPONENT_DIMENSION)
    stored = store.get(ScalableTarget, key)
    if stored is not None:
        forget_target(store, stored.document, now_s)


def refuse_lost_targets(store: Store, endpoint: Endpoint, deployment: Deployment) -> None:
    """Raises InvalidInput when the update removes a variant with a scalable target, or changes its
    instance type. In a transaction."""
    for stored in store.select(ScalableTarget, prefix=f"{endpoint.account}/"):
        name, variant_name = stored.document.endpoint_and_variant
        if name != endpoint.name:
            continue
        old = endpoint.current.variant(variant_name) if endpoint.current is not None else None
        new = deployment.variant(variant_name)
        if new is None or old is None or new.spec.instance_type != old.spec.instance_type:
            raise InvalidInput(
                f'The variant "{variant_name}" is a scalable target of Application Auto Scaling: '
                "deregister it before it is removed or gets another instance type."
            )
