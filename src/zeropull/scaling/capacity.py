"""What a scalable target scales: the instances of a variant, or the copies of a component."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from zeropull.errors import Conflict, NotFound
from zeropull.resources.capacity import CapacityChange, with_capacity
from zeropull.resources.components import (
    ComponentStatus,
    InferenceComponent,
    component_key,
    with_copies,
)
from zeropull.resources.endpoints import Endpoint, EndpointStatus, Variant, endpoint_key
from zeropull.resources.instances import CopyIntent
from zeropull.resources.scaling import COMPONENT_DIMENSION, ScalableTarget
from zeropull.scaling.documents import ScalingDocuments
from zeropull.statestore import Store


class Capacity(Protocol):
    """Something with a desired count."""

    @property
    def unit(self) -> str:
        """What Application Auto Scaling calls one of it."""

    @property
    def desired(self) -> int: ...

    @property
    def current(self) -> int: ...

    @property
    def is_in_progress(self) -> bool: ...

    @property
    def failure_reason(self) -> str: ...

    @property
    def endpoint_uid(self) -> str: ...

    @property
    def component(self) -> str | None:
        """Its name; None for a variant."""

    def units(self, documents: ScalingDocuments) -> tuple[int, Sequence[float]]:
        """How many serve, and since when each of the newest ones is there, oldest first."""

    def change(
        self, store: Store, wanted: CapacityChange, now_s: float, *, while_scaling: bool
    ) -> bool:
        """Write another desired count; False when it cannot be changed now."""


@dataclass(frozen=True, slots=True)
class VariantCapacity:
    """The instances of one variant, as they serve."""

    endpoint: Endpoint
    variant: Variant
    unit: str = "instance"

    @property
    def desired(self) -> int:
        return self.variant.desired_instances

    @property
    def current(self) -> int:
        return self.variant.current_instances

    @property
    def is_in_progress(self) -> bool:
        return self.endpoint.status.is_in_progress

    @property
    def failure_reason(self) -> str:
        return self.endpoint.failure_reason

    @property
    def endpoint_uid(self) -> str:
        return self.endpoint.uid

    @property
    def component(self) -> str | None:
        return None

    def units(self, documents: ScalingDocuments) -> tuple[int, Sequence[float]]:
        assert self.endpoint.current is not None
        serving = [
            copy
            for copy in documents.copies.grouped(self.endpoint.uid)
            if copy.variant == self.variant.name
            and copy.intent is CopyIntent.RUN
            and copy.deployment_id == self.endpoint.current.deployment_id
            and copy.routed_s is not None
        ]
        began = sorted(
            instance.created_s
            for instance in documents.instances.grouped(self.endpoint.uid)
            if instance.variant == self.variant.name
        )
        return len(serving), began

    def change(
        self, store: Store, wanted: CapacityChange, now_s: float, *, while_scaling: bool
    ) -> bool:
        changes = {self.variant.name: wanted}
        try:
            store.update(
                Endpoint,
                self.endpoint.key,
                lambda now: with_capacity(now, changes, now_s, while_scaling=while_scaling),
            )
        except (Conflict, NotFound):
            return False
        return True


@dataclass(frozen=True, slots=True)
class ComponentCapacity:
    """The copies of one inference component."""

    document: InferenceComponent
    unit: str = "copy"

    @property
    def desired(self) -> int:
        return self.document.desired_copies

    @property
    def current(self) -> int:
        return self.document.current_copies

    @property
    def is_in_progress(self) -> bool:
        busy = (ComponentStatus.CREATING, ComponentStatus.UPDATING, ComponentStatus.DELETING)
        return self.document.status in busy

    @property
    def failure_reason(self) -> str:
        return self.document.failure_reason or self.document.waiting

    @property
    def endpoint_uid(self) -> str:
        return self.document.endpoint_uid

    @property
    def component(self) -> str | None:
        return self.document.name

    def units(self, documents: ScalingDocuments) -> tuple[int, Sequence[float]]:
        copies = [
            copy
            for copy in documents.copies.grouped(self.document.endpoint_uid)
            if copy.component == self.document.name and copy.intent is CopyIntent.RUN
        ]
        serving = sum(copy.routed_s is not None for copy in copies)
        return serving, sorted(copy.created_s for copy in copies)

    def change(
        self, store: Store, wanted: CapacityChange, now_s: float, *, while_scaling: bool
    ) -> bool:
        assert wanted.instances is not None
        copies = wanted.instances
        try:
            store.update(
                InferenceComponent,
                self.document.key,
                lambda now: with_copies(
                    now,
                    copies,
                    now_s,
                    reason=wanted.reason,
                    cause_s=wanted.cause_s,
                    while_scaling=while_scaling,
                ),
            )
        except (Conflict, NotFound):
            return False
        return True


def capacity_of(documents: ScalingDocuments, target: ScalableTarget) -> Capacity | None:
    """What the target scales, as it serves; None while there is nothing to scale."""
    if target.dimension == COMPONENT_DIMENSION:
        component = documents.components.get(component_key(target.account, target.component))
        unscalable = (ComponentStatus.DELETING, ComponentStatus.FAILED, ComponentStatus.CREATING)
        if component is None or component.status in unscalable:
            return None
        return ComponentCapacity(component)
    name, variant_name = target.endpoint_and_variant
    endpoint = documents.endpoints.get(endpoint_key(target.account, name))
    if endpoint is None or endpoint.current is None:
        return None
    variant = endpoint.current.variant(variant_name)
    if variant is None or endpoint.status is EndpointStatus.DELETING:
        return None
    return VariantCapacity(endpoint, variant)
