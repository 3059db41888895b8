"""A world in memory for plan tests: the plan, its documents, an engine and a gateway."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.fixtures.memory_engine import MemoryEngine, at_once
from zeropull.errors import NoCapacity
from zeropull.placement.capacity import Shape, schedulable_memory_bytes
from zeropull.reconcilers.endpoint_view import Gateways, View
from zeropull.reconcilers.plan import Draft, Effect
from zeropull.reconcilers.planning import plan_endpoint
from zeropull.resources.components import InferenceComponent
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import (
    CopyRecord,
    Instance,
    InstanceState,
    TimelineRecord,
)
from zeropull.resources.settings import EndpointSettings

SHAPE = Shape("ml.duo", 4000, schedulable_memory_bytes(8 << 30), ("0", "1"))


def shape_of(instance_type: str) -> Shape:
    return replace(SHAPE, instance_type=instance_type)


@dataclass
class MemoryWorld:
    """Carries plans out at once: launches succeed unless `capacity` is used up."""

    endpoint: Endpoint
    now_s: float = 0.0
    capacity: int = 100
    settings: EndpointSettings = field(default_factory=EndpointSettings)
    instances: dict[str, Instance] = field(default_factory=dict)
    copies: dict[str, CopyRecord] = field(default_factory=dict)
    timelines: dict[str, TimelineRecord] = field(default_factory=dict)
    components: dict[str, InferenceComponent] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    in_flight: dict[str, int] = field(default_factory=dict)
    alarms: frozenset[str] = frozenset()
    unhealthy: dict[str, float] = field(default_factory=dict)
    resolve_failures: dict[str, str] = field(default_factory=dict)
    resolve_waits: dict[str, str] = field(default_factory=dict)
    gateway_up: bool = True
    has_cache: bool = False
    gone: bool = False
    announced: bool = False  # the routes say that it serves
    resolves: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = MemoryEngine(self.capacity)

    @property
    def launches(self) -> list[str]:
        return self.engine.launches

    def view(self) -> View:
        routed = {c.copy_id: self.now_s for c in self.copies.values() if c.state == "healthy"}
        seen = {i: self.engine.observe(i) for i in self.instances}
        name = (self.endpoint.account, self.endpoint.name)
        return View(
            self.endpoint,
            tuple(self.instances.values()),
            tuple(self.copies.values()),
            tuple(self.timelines.values()),
            gateways=Gateways(
                up=self.gateway_up,
                in_flight=self.in_flight,
                routed_s=routed if self.gateway_up else {},
                serving=frozenset({name} if self.gateway_up and self.announced else ()),
            ),
            lost=self.lost,
            unhealthy_since_s=self.unhealthy,
            resolve_failures=self.resolve_failures,
            resolve_waits=self.resolve_waits,
            cached={i: each.images for i, each in seen.items() if each is not None},
            stopped=frozenset().union(*(each.stopped for each in seen.values() if each)),
            alarms=self.alarms,
            has_cache=self.has_cache,
            components=tuple(self.components.values()),
        )

    def plan(self) -> Draft:
        """One round: written and carried out."""
        draft = plan_endpoint(self.view(), self.now_s, self.settings, shape_of)
        self.endpoint = draft.endpoint
        self.instances, self.copies = dict(draft.instances), dict(draft.copies)
        self.timelines, self.components = dict(draft.timelines), dict(draft.components)
        self.gone = draft.is_gone
        self.announced = draft.announces
        for action in draft.actions:
            match action.effect:
                case Effect.RESOLVE:
                    self.resolve(action.target)
                case Effect.LAUNCH:
                    self._launch(action.target)
                case Effect.TERMINATE:
                    self._terminate(action.target)
        self.engine.run_copies(self.view(), self.now_s)
        return draft

    def resolve(self, target: str) -> None:
        self.resolves.append(target)

    def running(self) -> list[Instance]:
        return [i for i in self.instances.values() if i.state is InstanceState.RUNNING]

    def _launch(self, instance_id: str) -> None:
        instance = self.instances[instance_id]
        try:
            launched = at_once(self.engine.launch(self.endpoint, instance))
        except NoCapacity as error:
            self.instances[instance_id] = replace(
                instance,
                state=InstanceState.WANTED,
                failure=error.reason,
                next_attempt_s=self.now_s + 2,
            )
            return
        self.instances[instance_id] = replace(
            instance,
            state=InstanceState.RUNNING,
            launched_s=self.now_s,
            running_s=self.now_s,
            address=launched.address,
            failure="",
        )

    def _terminate(self, instance_id: str) -> None:
        at_once(self.engine.terminate(instance_id))
        del self.instances[instance_id]
        for copy in list(self.copies.values()):
            if copy.instance_id == instance_id:
                del self.copies[copy.copy_id]
