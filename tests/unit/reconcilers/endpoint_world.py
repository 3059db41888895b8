"""Documents for plan tests, and a world that plays provider, node and gateway in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from zeropull.reconcilers.endpoint_view import Gateways, View
from zeropull.reconcilers.endpoints.planning import plan_endpoint
from zeropull.reconcilers.plan import Draft, Effect
from zeropull.resources.endpoint_configs import UpdatePolicy, VariantSpec
from zeropull.resources.endpoints import (
    DeployedImage,
    Deployment,
    Endpoint,
    EndpointStatus,
    Variant,
)
from zeropull.resources.instances import (
    CopyIntent,
    CopyRecord,
    Instance,
    InstanceState,
    TimelineRecord,
)
from zeropull.resources.models import ContainerSpec
from zeropull.resources.settings import EndpointSettings

DIGEST = "sha256:" + "a" * 64
IMAGE = "127.0.0.1:5000/model:1"
SETTINGS = EndpointSettings()


def deployment(
    count: int = 1,
    *,
    started_s: float = 0.0,
    image: str = IMAGE,
    resolved: bool = True,
    policy: UpdatePolicy | None = None,
    name: str = "main",
) -> Deployment:
    spec = VariantSpec(name, "ml.g5.xlarge", initial_instances=count, model_name="model")
    variant = Variant(
        spec,
        desired_instances=count,
        desired_weight=1.0,
        containers=(ContainerSpec(image),),
        images=(DeployedImage(image, DIGEST, 0.0),) if resolved else (),
    )
    return Deployment("config", (variant,), started_s, policy=policy or UpdatePolicy())


def endpoint(pending: Deployment | None, current: Deployment | None = None) -> Endpoint:
    status = EndpointStatus.CREATING if current is None else EndpointStatus.UPDATING
    return Endpoint(
        account="000000000000",
        name="demo",
        arn="arn:aws:sagemaker:us-east-1:000000000000:endpoint/demo",
        uid="u" * 32,
        status=status,
        created_s=0.0,
        modified_s=0.0,
        current=current,
        pending=pending,
    )


@dataclass
class World:
    """Carries plans out at once: launches succeed unless `capacity` is used up."""

    endpoint: Endpoint
    now_s: float = 0.0
    capacity: int = 100
    settings: EndpointSettings = SETTINGS
    instances: dict[str, Instance] = field(default_factory=dict)
    copies: dict[str, CopyRecord] = field(default_factory=dict)
    timelines: dict[str, TimelineRecord] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    in_flight: dict[str, int] = field(default_factory=dict)
    alarms: frozenset[str] = frozenset()
    unhealthy: dict[str, float] = field(default_factory=dict)
    resolve_failures: dict[str, str] = field(default_factory=dict)
    gateway_up: bool = True
    gone: bool = False
    resolves: list[str] = field(default_factory=list)
    launches: list[str] = field(default_factory=list)

    def view(self) -> View:
        routed = {c.copy_id: self.now_s for c in self.copies.values() if c.state == "healthy"}
        return View(
            self.endpoint,
            tuple(self.instances.values()),
            tuple(self.copies.values()),
            tuple(self.timelines.values()),
            gateways=Gateways(
                up=self.gateway_up,
                in_flight=self.in_flight,
                routed_s=routed if self.gateway_up else {},
            ),
            lost=self.lost,
            unhealthy_since_s=self.unhealthy,
            resolve_failures=self.resolve_failures,
            stopped=frozenset(
                c.copy_id for c in self.copies.values() if c.intent is CopyIntent.STOP
            ),
            alarms=self.alarms,
        )

    def plan(self) -> Draft:
        """One round: written and carried out."""
        draft = plan_endpoint(self.view(), self.now_s, self.settings)
        self.endpoint = draft.endpoint
        self.instances, self.copies = dict(draft.instances), dict(draft.copies)
        self.timelines = dict(draft.timelines)
        self.gone = draft.is_gone
        for action in draft.actions:
            match action.effect:
                case Effect.RESOLVE:
                    self.resolves.append(action.target)
                case Effect.LAUNCH:
                    self._launch(action.target)
                case Effect.TERMINATE:
                    self.instances.pop(action.target)
                    for copy in list(self.copies.values()):
                        if copy.instance_id == action.target:
                            del self.copies[copy.copy_id]
        return draft

    def rounds(self, count: int = 6, step_s: float = 1.0) -> World:
        """So many rounds, `step_s` apart."""
        for _ in range(count):
            self.plan()
            self.now_s += step_s
        return self

    def set_copies(self, state: str, *, of: Deployment | None = None, **changes: object) -> World:
        for copy in list(self.copies.values()):
            if of is None or copy.deployment_id == of.deployment_id:
                healthy_s = self.now_s if state == "healthy" else copy.healthy_s
                self.copies[copy.copy_id] = replace(
                    copy, state=state, host="198.18.0.10", healthy_s=healthy_s, **changes
                )
        return self

    def settle(self, rounds: int = 8) -> World:
        """Every copy that is to run becomes healthy, round after round."""
        for _ in range(rounds):
            self.plan()
            for copy in list(self.copies.values()):
                if self.instances[copy.instance_id].state is InstanceState.RUNNING:
                    self.copies[copy.copy_id] = replace(
                        copy,
                        state="healthy" if copy.state == "pending" else copy.state,
                        host="198.18.0.10",
                        healthy_s=self.now_s,
                    )
            self.now_s += 1.0
        return self

    def running(self) -> list[Instance]:
        return [i for i in self.instances.values() if i.state is InstanceState.RUNNING]

    def _launch(self, instance_id: str) -> None:
        self.launches.append(instance_id)
        used = sum(
            i.state in (InstanceState.RUNNING, InstanceState.DRAINING, InstanceState.TERMINATING)
            for i in self.instances.values()
        )
        instance = self.instances[instance_id]
        if used >= self.capacity:
            self.instances[instance_id] = replace(
                instance,
                state=InstanceState.WANTED,
                failure=f"{used} of {self.capacity} instances are in use",
                next_attempt_s=self.now_s + 2,
            )
            return
        self.instances[instance_id] = replace(
            instance,
            state=InstanceState.RUNNING,
            launched_s=self.now_s,
            running_s=self.now_s,
            failure="",
        )


def serving(count: int = 1, **kwargs: object) -> World:
    """An endpoint in service with so many instances."""
    world = World(endpoint(deployment(count)), **kwargs)  # type: ignore[arg-type]
    world.settle(4)
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    return world
