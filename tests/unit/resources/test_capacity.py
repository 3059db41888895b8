"""Changes of counts and weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from zeropull.errors import Conflict, NotFound
from zeropull.resources.capacity import CapacityChange, with_capacity
from zeropull.resources.endpoint_configs import VariantSpec
from zeropull.resources.endpoints import Deployment, Endpoint, EndpointStatus, Variant

VARIANTS = tuple(Variant(VariantSpec(name, "t", model_name="m"), 2, 1.0) for name in "ab")
ENDPOINT = Endpoint(
    account="0",
    name="e",
    arn="arn:e",
    uid="u",
    status=EndpointStatus.IN_SERVICE,
    created_s=1.0,
    modified_s=1.0,
    current=Deployment("c", VARIANTS, 1.0),
)


def test_only_what_is_named_changes() -> None:
    changed = with_capacity(
        ENDPOINT, {"a": CapacityChange(instances=5), "b": CapacityChange(weight=0.5)}, 9.0
    )
    assert changed.current is not None
    shown = [(v.desired_instances, v.desired_weight) for v in changed.current.variants]
    assert shown == [(5, 1.0), (2, 0.5)]
    assert (changed.status, changed.modified_s) == (EndpointStatus.UPDATING, 9.0)
    assert changed.pending is None


def test_an_unknown_variant_is_named_with_the_config() -> None:
    with pytest.raises(NotFound, match='"x" is/are not present within endpoint configuration "c"'):
        with_capacity(ENDPOINT, {"x": CapacityChange(1)}, 9.0)


@pytest.mark.parametrize(
    "status", [status for status in EndpointStatus if status is not EndpointStatus.IN_SERVICE]
)
def test_only_an_endpoint_in_service_can_change(status: EndpointStatus) -> None:
    with pytest.raises(Conflict, match="Cannot update"):
        with_capacity(replace(ENDPOINT, status=status), {"a": CapacityChange(1)}, 9.0)
