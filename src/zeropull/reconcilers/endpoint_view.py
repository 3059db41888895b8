"""What a plan looks at: the documents of one endpoint, and what nodes and gateways said last."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from zeropull.controlapi.messages import CopyState
from zeropull.reconcilers.copy_index import CopyIndex
from zeropull.resources.components import InferenceComponent
from zeropull.resources.endpoints import Deployment, Endpoint, Variant
from zeropull.resources.instances import (
    CopyIntent,
    CopyRecord,
    Instance,
    InstanceState,
    TimelineRecord,
)

LIVE_STATES = frozenset({InstanceState.WANTED, InstanceState.LAUNCHING, InstanceState.RUNNING})


def live_instances(
    instances: Iterable[Instance],
    deployment: Deployment | None = None,
    variant: Variant | None = None,
) -> list[Instance]:
    """Those that are there or coming and not leaving, oldest first: of one variant of one
    deployment, or all."""
    found = [
        i
        for i in instances
        if i.state in LIVE_STATES
        and not i.leaving
        and (deployment is None or i.deployment_id == deployment.deployment_id)
        and (variant is None or i.variant == variant.name)
    ]
    return sorted(found, key=lambda i: (i.created_s, i.instance_id))


@dataclass(frozen=True, slots=True)
class Gateways:
    """All gateways together. `up`: at least one has reported lately, so that its word counts.

    `acknowledged`: every one that is up has applied the routes published last.
    """

    up: bool = False
    acknowledged: bool = True
    in_flight: dict[str, int] = field(default_factory=dict)
    routed_s: dict[str, float] = field(default_factory=dict)
    first_response_s: dict[str, float] = field(default_factory=dict)
    serving: frozenset[tuple[str, str]] = frozenset()  # endpoints that they serve: account, name


@dataclass(frozen=True, slots=True)
class View:
    """Everything that concerns one endpoint, at one moment.

    `lost` names instances whose node is gone or silent, with the sentence that says so;
    `unhealthy_since_s` copies that were healthy once and are not now; `resolve_failures` the
    sentence by deployment ID; `stopped` copies that their node no longer knows.
    """

    endpoint: Endpoint
    instances: tuple[Instance, ...] = ()
    copies: tuple[CopyRecord, ...] = ()
    timelines: tuple[TimelineRecord, ...] = ()
    gateways: Gateways = field(default_factory=Gateways)
    lost: dict[str, str] = field(default_factory=dict)
    unhealthy_since_s: dict[str, float] = field(default_factory=dict)
    resolve_waits: dict[str, str] = field(default_factory=dict)  # why digests are waited for
    announces: bool = False  # the routes are to say that it serves, before its status does
    resolve_failures: dict[str, str] = field(default_factory=dict)
    stopped: frozenset[str] = frozenset()
    alarms: frozenset[str] = frozenset()  # names of alarms in ALARM
    has_cache: bool = False  # files of its image cache are still there
    components: tuple[InferenceComponent, ...] = ()
    cached: dict[str, frozenset[str]] = field(default_factory=dict)  # image digests by instance
    _by_instance: CopyIndex = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_instance", CopyIndex(self.copies))

    def copies_on(self, instance: Instance) -> list[CopyRecord]:
        return self._by_instance.on_instance(instance.instance_id)

    def fleet(self, deployment: Deployment, variant: Variant) -> list[Instance]:
        """Instances that count for the variant's capacity, oldest first."""
        return live_instances(self.instances, deployment, variant)

    def runs(self, instance: Instance) -> bool:
        return instance.state is InstanceState.RUNNING and instance.instance_id not in self.lost

    def is_healthy(self, instance: Instance) -> bool:
        """Runs, and every copy that is the instance's own answers /ping. Copies of components are
        no part of it: they come and go on an instance that stays."""
        return self.runs(instance) and all(
            c.state == CopyState.HEALTHY for c in self._own_copies(instance)
        )

    def is_ready(self, instance: Instance) -> bool:
        """Healthy and in rotation."""
        return self.is_healthy(instance) and all(
            self._is_routed(c)
            for c in self._own_copies(instance)
            if c.intent is CopyIntent.RUN and c.container == 0
        )

    def is_serving(self, copy: CopyRecord, instance: Instance | None) -> bool:
        """A component's copy on this instance: healthy and in rotation."""
        return (
            copy.intent is CopyIntent.RUN
            and copy.state == CopyState.HEALTHY
            and instance is not None
            and self.runs(instance)
            and self._is_routed(copy)
        )

    def is_heard(self, instance: Instance) -> bool:
        """It has said something since this control plane started."""
        return instance.instance_id in self.cached

    @property
    def is_announced(self) -> bool:
        """Every gateway has applied routes by which the endpoint serves."""
        return (self.endpoint.account, self.endpoint.name) in self.gateways.serving

    def in_flight(self, instance: Instance) -> int:
        return sum(self.gateways.in_flight.get(c.copy_id, 0) for c in self.copies_on(instance))

    def _own_copies(self, instance: Instance) -> list[CopyRecord]:
        return [c for c in self.copies_on(instance) if c.component is None]

    def _is_routed(self, copy: CopyRecord) -> bool:
        """A gateway that is down cannot hold an endpoint up."""
        return (
            not self.gateways.up
            or copy.routed_s is not None
            or copy.copy_id in self.gateways.routed_s
        )
