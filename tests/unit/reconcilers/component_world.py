"""Component endpoints for plan tests, and a world that plays provider, nodes and gateway."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.unit.reconcilers.memory_world import MemoryWorld
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
    InstanceState,
)
from zeropull.resources.models import ContainerSpec
from zeropull.resources.settings import EndpointSettings

ACCOUNT = "000000000000"
SETTINGS = EndpointSettings(idle_release_s=5.0)


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
class ComponentWorld(MemoryWorld):
    """`settle` makes copies healthy unless their component is in `broken`."""

    settings: EndpointSettings = SETTINGS
    broken: dict[str, dict[str, object]] = field(default_factory=dict)  # component -> changes
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

    def resolve(self, version_id: str) -> None:
        for name, component in self.components.items():
            for which in ("current", "pending"):
                found: ComponentVersion | None = getattr(component, which)
                if found is not None and found.version_id == version_id:
                    reference = found.spec.container.image
                    image = DeployedImage(reference, f"sha256:{reference}", self.now_s)
                    self.change(name, **{which: replace(found, image=image)})


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
