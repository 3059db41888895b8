"""The operations of SageMaker as one table."""

from __future__ import annotations

from collections.abc import Collection

from zeropull.api.operations import OperationTable
from zeropull.api.sagemaker.endpointconfigs import EndpointConfigOperations
from zeropull.api.sagemaker.endpoints import EndpointHooks, EndpointOperations
from zeropull.api.sagemaker.models import ModelOperations
from zeropull.api.sagemaker.tags import TagOperations
from zeropull.statestore import Store


def sagemaker_table(
    store: Store,
    *,
    instance_types: Collection[str],
    with_components: bool = False,
    hooks: EndpointHooks | None = None,
) -> OperationTable:
    """`instance_types`: every name of the catalog. `with_components`: variants without a model,
    which host inference components, are accepted."""
    return OperationTable(
        "sagemaker",
        (
            *ModelOperations(store).operations(),
            *EndpointConfigOperations(
                store, frozenset(instance_types), with_components=with_components
            ).operations(),
            *EndpointOperations(store, hooks).operations(),
            *TagOperations(store).operations(),
        ),
        enum_extras={"ProductionVariantInstanceType": frozenset(instance_types)},
    )
