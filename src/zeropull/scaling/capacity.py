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
from zeropull.resources.instances import CopyIntent, CopyRecord, Instance
from zeropull.resources.scaling import COMPONENT_DIMENSION, ScalableTarget, component_of
from zeropull.statestore import Store


class Scaled(Protocol):
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

    def units(self, store: Store) -> tuple[int, Sequence[float]]:
        """How many serve, and since when each of the newest ones is there, oldest first."""

    def change(
        self, store: Store, wanted: CapacityChange, now_s: float, *, while_scaling: bool
    ) -> bool:
        """Write another desired count; False when it cannot be changed now."""


@dataclass(frozen=True, slots=True)
class ScaledVariant:
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

    def units(self, store: Store) -> tuple[int, Sequence[float]]:
        assert self.endpoint.current is not None
        serving = [
            stored.document
            for stored in store.select(CopyRecord, endpoint_uid=self.endpoint.uid)
            if stored.document.variant == self.variant.name
            and stored.document.intent is CopyIntent.RUN
            and stored.document.deployment_id == self.endpoint.current.deployment_id
            and stored.document.routed_s is not None
        ]
        began = sorted(
            stored.document.created_s
            for stored in store.select(Instance, endpoint_uid=self.endpoint.uid)
            if stored.document.variant == self.variant.name
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
class ScaledComponent:
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

    def units(self, store: Store) -> tuple[int, Sequence[float]]:
        copies = [
            stored.document
            for stored in store.select(CopyRecord, endpoint_uid=self.document.endpoint_uid)
            if stored.document.component == self.document.name
            and stored.document.intent is CopyIntent.RUN
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


def scaled_by(store: Store, target: ScalableTarget) -> Scaled | None:
    """What the target scales, as it serves; None while there is nothing to scale."""
    if target.dimension == COMPONENT_DIMENSION:
        key = component_key(target.account, component_of(target.resource_id))
        component = store.get(InferenceComponent, key)
        unscalable = (ComponentStatus.DELETING, ComponentStatus.FAILED, ComponentStatus.CREATING)
        if component is None or component.document.status in unscalable:
            return None
        return ScaledComponent(component.document)
    name, variant_name = target.endpoint_and_variant
    stored = store.get(Endpoint, endpoint_key(target.account, name))
    if stored is None or stored.document.current is None:
        return None
    variant = stored.document.current.variant(variant_name)
    if variant is None or stored.document.status is EndpointStatus.DELETING:
        return None
    return ScaledVariant(stored.document, variant)
