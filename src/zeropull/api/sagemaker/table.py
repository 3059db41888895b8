"""The operations of SageMaker as one table."""

from __future__ import annotations

from collections.abc import Callable, Collection

from zeropull.api.operations import OperationTable
from zeropull.api.sagemaker.components import ComponentOperations
from zeropull.api.sagemaker.endpoint_configs import EndpointConfigOperations
from zeropull.api.sagemaker.endpoints import EndpointHooks, EndpointOperations
from zeropull.api.sagemaker.models import ModelOperations
from zeropull.api.sagemaker.tags import TagOperations
from zeropull.placement.capacity import Shape
from zeropull.resources.components import InferenceComponent
from zeropull.statestore import Store


def sagemaker_table(
    store: Store,
    *,
    instance_types: Collection[str],
    with_components: bool = False,
    hooks: EndpointHooks | None = None,
    component_shape: Callable[[str], Shape | None] = lambda instance_type: None,
    on_component_delete: Callable[[InferenceComponent, float], None] = lambda *_: None,
) -> OperationTable:
    """`instance_types`: every name of the catalog. `with_components`: variants without a model are
    accepted, and the inference components that they host. `component_shape`: what an empty instance
    of a type offers to them."""
    components = ComponentOperations(store, component_shape, on_component_delete)
    return OperationTable(
        "sagemaker",
        (
            *ModelOperations(store).operations(),
            *EndpointConfigOperations(
                store, frozenset(instance_types), with_components=with_components
            ).operations(),
            *EndpointOperations(store, hooks).operations(),
            *(components.operations() if with_components else ()),
            *TagOperations(store).operations(),
        ),
        enum_extras={"ProductionVariantInstanceType": frozenset(instance_types)},
    )
