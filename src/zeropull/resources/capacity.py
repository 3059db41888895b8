"""Change how much of a variant is wanted: what UpdateEndpointWeightsAndCapacities and autoscalers
do. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from zeropull.errors import Conflict, NotFound
from zeropull.resources.endpoints import Endpoint, EndpointStatus


@dataclass(frozen=True, slots=True)
class CapacityChange:
    """None keeps what is. `reason` and `cause_s` (since when it was needed, Unix seconds) go into
    the timeline of what is launched for it."""

    instances: int | None = None
    weight: float | None = None
    reason: str = ""
    cause_s: float | None = None


def with_capacity(
    endpoint: Endpoint,
    changes: Mapping[str, CapacityChange],
    now_s: float,
    *,
    while_scaling: bool = False,
) -> Endpoint:
    """The endpoint, Updating towards other counts and weights of its current deployment.

    `while_scaling`: an earlier change of capacity may still be under way; the new one replaces it,
    as it replaces one that waits for what cannot be had.

    Raises:
        Conflict: the endpoint is not InService, with SageMaker's text.
        NotFound: a variant is unknown, with SageMaker's text.
    """
    is_scaling = endpoint.status is EndpointStatus.UPDATING and endpoint.pending is None
    may_change = is_scaling and (while_scaling or endpoint.is_stuck)
    if endpoint.status.is_in_progress and not may_change:
        raise Conflict(f'Cannot update in-progress endpoint "{endpoint.arn}".')
    is_serving = endpoint.status is EndpointStatus.IN_SERVICE or may_change
    if not is_serving or endpoint.current is None:
        raise Conflict(
            f'Cannot update endpoint "{endpoint.arn}" while its status is {endpoint.status}.'
        )
    known = {variant.name for variant in endpoint.current.variants}
    unknown = [name for name in changes if name not in known]
    if unknown:
        names = ", ".join(f'"{name}"' for name in unknown)
        raise NotFound(
            f"The variant name(s) {names} is/are not present within endpoint configuration "
            f'"{endpoint.current.config_name}".'
        )
    variants = []
    for variant in endpoint.current.variants:
        change = changes.get(variant.name, CapacityChange())
        variants.append(
            replace(
                variant,
                desired_instances=(
                    variant.desired_instances if change.instances is None else change.instances
                ),
                desired_weight=variant.desired_weight if change.weight is None else change.weight,
                cause=change.reason,
                cause_s=change.cause_s,
            )
        )
    return replace(
        endpoint,
        status=EndpointStatus.UPDATING,
        modified_s=now_s,
        current=replace(endpoint.current, variants=tuple(variants)),
    )
