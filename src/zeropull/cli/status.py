"""Tables of endpoints and the reasons behind their state."""

from __future__ import annotations

from datetime import datetime

from rich.console import Console
from rich.table import Table

from zeropull.admin.messages import EndpointState, InstanceStatus, Status, TargetStatus
from zeropull.cli.plain_text import plain
from zeropull.errors import NotFound


def show_status(found: Status, console: Console) -> None:
    """One row per instance."""
    table = Table("endpoint", "status", "variant", "instance", "type", "state", "copies", "cache")
    for endpoint in found.endpoints:
        generation = endpoint.image_cache.generation
        cache = f"generation {generation}" if generation else "none"
        rows: list[list[str]] = [_cells(instance) for instance in endpoint.instances]
        for number, cells in enumerate(rows or [[""] * 5]):
            first = number == 0
            head = [endpoint.name, endpoint.status] if first else ["", ""]
            table.add_row(*map(plain, [*head, *cells, cache if first else ""]))
    console.print(table)
    for each in found.damaged:
        console.print(plain(f"damaged and set aside: {each.kind} {each.key}: {each.reason}"))
    if found.disk_low:
        console.print(plain(found.disk_low))


def show_explanation(found: Status, name: str, console: Console) -> None:
    """Why the endpoint is in its state, and why each instance was wanted.

    Raises:
        NotFound: there is no such endpoint.
    """
    endpoint = next((e for e in found.endpoints if e.name.lower() == name.lower()), None)
    if endpoint is None:
        raise NotFound(f"there is no endpoint {name}")
    console.print(plain(endpoint.name, "bold") + plain(f" is {endpoint.status}"))
    for line in _explanation(endpoint):
        console.print(plain(line))


def _cells(instance: InstanceStatus) -> list[str]:
    copies = ", ".join(copy.state for copy in instance.copies)
    return [
        instance.variant,
        instance.instance_id,
        instance.instance_type,
        instance.state,
        copies,
    ]


def _explanation(endpoint: EndpointState) -> list[str]:
    lines = []
    if endpoint.failure_reason:
        lines.append(f"  {endpoint.failure_reason}")
    if endpoint.image_cache.message:
        lines.append(f"  image cache: {endpoint.image_cache.message}")
    for target in endpoint.scaling:
        lines += _scaling(target)
    for component in endpoint.components:
        counts = f"{component.current_copies} of {component.desired_copies} copies serve"
        text = f"  {component.name} is {component.status}, {counts}"
        lines.append(f"{text}: {component.message}" if component.message else text)
    for instance in endpoint.instances:
        lines.append(f"  {instance.instance_id} {instance.state}: {instance.reason}")
        if instance.failure:
            lines.append(f"    {instance.failure}")
        for copy in instance.copies:
            of = f" of {copy.component}" if copy.component else ""
            text = f"    {copy.copy_id}{of} {copy.state}, {copy.restarts} restarts"
            lines.append(f"{text}: {copy.message}" if copy.message else text)
    return lines


def _scaling(target: TargetStatus) -> list[str]:
    """The reading, the rule and the limit in the way, as the decision has them."""
    bounds = f"  {target.resource_id} scales from {target.minimum} to {target.maximum}"
    if target.desired is None:
        return [bounds, f"    {target.reason}"]
    at = datetime.fromtimestamp(target.decided_s).strftime("%H:%M:%S")
    verdict = target.not_scaled or f"wants {target.desired}"
    policy = f", policy {target.policy}" if target.policy else ""
    return [bounds, f"    {at} {target.mode}{policy}: {verdict}", f"    {target.reason}"]
