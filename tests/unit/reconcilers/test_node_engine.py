"""What an instance is launched with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.reconcilers.endpoint_world import deployment, endpoint
from zeropull.reconcilers.node_engine import disk_budget
from zeropull.resources.endpoints import Deployment, Endpoint
from zeropull.resources.instances import Instance, InstanceState

GIB = 1 << 30


def with_volume(volume_gb: int | None) -> Deployment:
    made = deployment()
    variants = tuple(
        replace(variant, spec=replace(variant.spec, volume_gb=volume_gb))
        for variant in made.variants
    )
    return replace(made, variants=variants)


def instance(of: Endpoint, deployment_id: str) -> Instance:
    return Instance(
        "i-" + "0" * 17, of.account, of.uid, of.name, "main", "ml.g5.xlarge",
        deployment_id, InstanceState.WANTED, "token", 0.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("volume_gb", "fleet_bytes", "expected"),
    [
        (None, None, None),
        (None, 7 * GIB, 7 * GIB),
        (5, None, 5 * GIB),
        (5, 7 * GIB, 5 * GIB),
        (9, 7 * GIB, 7 * GIB),
    ],
)
def test_the_volume_of_a_variant_is_the_disk_budget_of_its_instances(
    volume_gb: int | None, fleet_bytes: int | None, expected: int | None
) -> None:
    found = endpoint(with_volume(volume_gb))
    assert found.pending is not None
    new = instance(found, found.pending.deployment_id)
    assert disk_budget(found, new, fleet_bytes) == expected


def test_an_instance_of_another_deployment_has_the_budget_of_the_fleet() -> None:
    found = endpoint(with_volume(5))
    assert disk_budget(found, instance(found, "earlier"), 7 * GIB) == 7 * GIB
