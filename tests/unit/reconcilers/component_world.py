"""Component endpoints for plan tests, and a world that plays provider, nodes and gateway."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from zeropull.placement.capacity import Shape, schedulable_memory_bytes
from zeropull.reconcilers.components.planning import plan_component_endpoint
from zeropull.reconcilers.endpoint_view import Gateways, View
from zeropull.reconcilers.plan import Draft, Effect
from zeropull.resources.components import (
    ComponentSpec,
    ComponentStatus,
    ComponentVersion,
    InferenceComponent,
)
from zeropull.resources.endpoint_configs import ManagedScaling, UpdatePolicy, VariantSpec
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

ACCOUNT = "000000000000"
SETTINGS = EndpointSettings(idle_release_s=5.0)
SHAPE = Shape("ml.duo", 4000, schedulable_memory_bytes(8 << 30), ("0", "1"))


def deployment(
    minimum: int = 1,
    maximum: int = 3,
    *,
    initial: int = 1,
    managed: bool = True,
    strategy: str = "IDLE_RELEASE",
    kind: str = "ml.duo",
) -> Deployment:
    spec = VariantSpec(
        "main",
        kind,
        initial_instances=initial,
        managed_scaling=ManagedScaling(managed, minimum, maximum, strategy, 1, 300.0),
    )
    return Deployment("config", (Variant(spec, initial, 1.0),), 0.0)


def version(
    image: str = "repo/a:1",
    *,
    accelerators: int = 0,
    memory_mb: int = 512,
    policy: UpdatePolicy | None = None,
    strategy: str = "SPREAD",
) -> ComponentVersion:
    return ComponentVersion(
        ComponentSpec(
            ContainerSpec(image),
            memory_mb << 20,
            cpu_milli=250,
            accelerators=accelerators,
            strategy=strategy,
        ),
        0.0,
        policy=policy or UpdatePolicy(None, None),
    )


@dataclass
class ComponentWorld:
    """Carries plans out at once; `step` makes copies healthy unless they are in `broken`."""

    endpoint: Endpoint
    now_s: float = 0.0
    capacity: int = 100
    settings: EndpointSettings = SETTINGS
    instances: dict[str, Instance] = field(default_factory=dict)
    copies: dict[str, CopyRecord] = field(default_factory=dict)
    timelines: dict[str, TimelineRecord] = field(default_factory=dict)
    components: dict[str, InferenceComponent] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    in_flight: dict[str, int] = field(default_factory=dict)
    resolve_failures: dict[str, str] = field(default_factory=dict)
    alarms: frozenset[str] = frozenset()
    broken: dict[str, dict[str, object]] = field(default_factory=dict)  # component -> changes
    has_cache: bool = False
    gone: bool = False
    fewest: dict[str, int] = field(default_factory=dict)  # serving copies ever, by component

    def add(self, name: str, copies: int = 1, first: ComponentVersion | None = None) -> None:
        self.components[name] = InferenceComponent(
            account=ACCOUNT,
            name=name,
            arn=f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:inference-component/{name}",
            uid=name * 3,
            endpoint_uid=self.endpoint.uid,
            endpoint=self.endpoint.name,
            endpoint_arn=self.endpoint.arn,
            variant="main",
            status=ComponentStatus.CREATING,
            created_s=self.now_s,
            modified_s=self.now_s,
            desired_copies=copies,
            current=first or version(),
        )

    def change(self, name: str, **changes: object) -> None:
        self.components[name] = replace(self.components[name], **changes)  # type: ignore[arg-type]

    def scale(self, name: str, copies: int) -> None:
        self.change(name, status=ComponentStatus.UPDATING, desired_copies=copies)

    def view(self) -> View:
        routed = {c.copy_id: self.now_s for c in self.copies.values() if c.state == "healthy"}
        return View(
            self.endpoint,
            tuple(self.instances.values()),
            tuple(self.copies.values()),
            tuple(self.timelines.values()),
            gateways=Gateways(up=True, in_flight=self.in_flight, routed_s=routed),
            lost=self.lost,
            resolve_failures=self.resolve_failures,
            stopped=frozenset(
                c.copy_id for c in self.copies.values() if c.intent is CopyIntent.STOP
            ),
            alarms=self.alarms,
            has_cache=self.has_cache,
            components=tuple(self.components.values()),
        )

    def plan(self) -> Draft:
        """One round: written and carried out."""
        draft = plan_component_endpoint(
            self.view(), self.now_s, self.settings, lambda kind: replace(SHAPE, instance_type=kind)
        )
        self.endpoint = draft.endpoint
        self.instances, self.copies = dict(draft.instances), dict(draft.copies)
        self.timelines, self.components = dict(draft.timelines), dict(draft.components)
        self.gone = draft.is_gone
        for action in draft.actions:
            match action.effect:
                case Effect.RESOLVE_COMPONENT:
                    self._resolve(action.target)
                case Effect.LAUNCH:
                    self._launch(action.target)
                case Effect.TERMINATE:
                    del self.instances[action.target]
                    for copy in list(self.copies.values()):
                        if copy.instance_id == action.target:
                            del self.copies[copy.copy_id]
        return draft

    def settle(self, rounds: int = 10) -> ComponentWorld:
        """Rounds of a second; copies on running instances become healthy."""
        for _ in range(rounds):
            self.plan()
            for copy in list(self.copies.values()):
                changes = self.broken.get(copy.component or "")
                if changes is not None:
                    self.copies[copy.copy_id] = replace(copy, **changes)  # type: ignore[arg-type]
                elif (
                    self.instances[copy.instance_id].state is InstanceState.RUNNING
                    and copy.state == "pending"
                ):
                    self.copies[copy.copy_id] = replace(
                        copy, state="healthy", host="198.18.0.10", healthy_s=self.now_s,
                        routed_s=self.now_s,
                    )  # fmt: skip
            for name in self.components:
                serving = len([c for c in self.of(name) if c.state == "healthy"])
                self.fewest[name] = min(self.fewest.get(name, 1000), serving)
            self.now_s += 1.0
        return self

    def of(self, name: str) -> list[CopyRecord]:
        """Copies that are to run."""
        return [
            c for c in self.copies.values() if c.component == name and c.intent is CopyIntent.RUN
        ]

    def status(self, name: str) -> ComponentStatus:
        return self.components[name].status

    def running(self) -> list[Instance]:
        return [i for i in self.instances.values() if i.state is InstanceState.RUNNING]

    def _resolve(self, version_id: str) -> None:
        for name, component in self.components.items():
            for which in ("current", "pending"):
                found: ComponentVersion | None = getattr(component, which)
                if found is not None and found.version_id == version_id:
                    reference = found.spec.container.image
                    image = DeployedImage(reference, f"sha256:{reference}", self.now_s)
                    self.change(name, **{which: replace(found, image=image)})

    def _launch(self, instance_id: str) -> None:
        instance = self.instances[instance_id]
        used = sum(
            i.state in (InstanceState.RUNNING, InstanceState.DRAINING, InstanceState.TERMINATING)
            for i in self.instances.values()
        )
        if used >= self.capacity:
            self.instances[instance_id] = replace(
                instance,
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


def world(first: Deployment | None = None, **kwargs: object) -> ComponentWorld:
    """A component endpoint in service, with its instances up and empty."""
    endpoint = Endpoint(
        account=ACCOUNT,
        name="shared",
        arn=f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:endpoint/shared",
        uid="u" * 32,
        status=EndpointStatus.CREATING,
        created_s=0.0,
        modified_s=0.0,
        pending=first or deployment(),
    )
    made = ComponentWorld(endpoint, **kwargs)  # type: ignore[arg-type]
    made.settle(3)
    assert made.endpoint.status is EndpointStatus.IN_SERVICE
    return made
