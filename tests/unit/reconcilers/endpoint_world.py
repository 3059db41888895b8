"""Documents of endpoints without components, and a world with one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tests.unit.reconcilers.memory_world import MemoryWorld
from zeropull.resources.endpoint_configs import UpdatePolicy, VariantSpec
from zeropull.resources.endpoints import (
    DeployedImage,
    Deployment,
    Endpoint,
    EndpointStatus,
    Variant,
)
from zeropull.resources.instances import InstanceState
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
class World(MemoryWorld):
    """One endpoint without components."""

    def rounds(self, count: int = 6, step_s: float = 1.0) -> World:
        """So many rounds, `step_s` apart."""
        for _ in range(count):
            self.plan()
            self.now_s += step_s
        return self

    def set_copies(self, state: str, *, of: Deployment | None = None, **changes: Any) -> World:
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


def serving(count: int = 1, **kwargs: object) -> World:
    """An endpoint in service with so many instances."""
    world = World(endpoint(deployment(count)), **kwargs)  # type: ignore[arg-type]
    world.settle(4)
    assert world.endpoint.status is EndpointStatus.IN_SERVICE
    return world
