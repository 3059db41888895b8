"""Tables of endpoints and the reasons behind their state."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from zeropull.errors import NotFound


def show_status(found: dict[str, Any], console: Console) -> None:
    """One row per instance."""
    table = Table("endpoint", "status", "variant", "instance", "type", "state", "copies", "cache")
    for endpoint in found["endpoints"]:
        generation = endpoint["image_cache"]["generation"]
        cache = f"generation {generation}" if generation else "none"
        rows = endpoint["instances"] or [None]
        for number, instance in enumerate(rows):
            head = (endpoint["name"], endpoint["status"]) if number == 0 else ("", "")
            if instance is None:
                table.add_row(*head, "", "", "", "", "", cache)
                continue
            copies = ", ".join(c["state"] for c in instance["copies"])
            table.add_row(
                *head,
                instance["variant"],
                instance["instance_id"],
                instance["instance_type"],
                instance["state"],
                copies,
                cache if number == 0 else "",
            )
    console.print(table)
    for each in found.get("damaged", ()):
        text = f"damaged and set aside: {each['kind']} {each['key']}: {each['reason']}"
        console.print(text, markup=False)
    if found.get("disk_low"):
        console.print(found["disk_low"], markup=False)


def show_explanation(found: dict[str, Any], name: str, console: Console) -> None:
    """Why the endpoint is in its state, and why each instance was wanted."""
    endpoint = next((e for e in found["endpoints"] if e["name"].lower() == name.lower()), None)
    if endpoint is None:
        raise NotFound(f"there is no endpoint {name}")
    console.print(f"[bold]{endpoint['name']}[/] is {endpoint['status']}")
    if endpoint["failure_reason"]:
        console.print(f"  {endpoint['failure_reason']}", markup=False)
    if endpoint["image_cache"]["message"]:
        console.print(f"  image cache: {endpoint['image_cache']['message']}", markup=False)
    for target in endpoint["scaling"]:
        _explain_scaling(target, console)
    for component in endpoint["components"]:
        counts = f"{component['current_copies']} of {component['desired_copies']} copies serve"
        text = f"  {component['name']} is {component['status']}, {counts}"
        why = component["message"]
        console.print(f"{text}: {why}" if why else text, markup=False)
    for instance in endpoint["instances"]:
        console.print(f"  {instance['instance_id']} {instance['state']}: {instance['reason']}")
        if instance["failure"]:
            console.print(f"    {instance['failure']}", markup=False)
        for copy in instance["copies"]:
            of = f" of {copy['component']}" if copy["component"] else ""
            text = f"    {copy['copy_id']}{of} {copy['state']}, {copy['restarts']} restarts"
            console.print(f"{text}: {copy['message']}" if copy["message"] else text, markup=False)


def _explain_scaling(target: dict[str, Any], console: Console) -> None:
    """The reading, the rule and the limit in the way, as the decision has them."""
    bounds = f"{target['minimum']} to {target['maximum']}"
    console.print(f"  {target['resource_id']} scales from {bounds}", markup=False)
    if target["desired"] is None:
        console.print(f"    {target['reason']}", markup=False)
        return
    at = datetime.fromtimestamp(target["decided_s"]).strftime("%H:%M:%S")
    verdict = target["not_scaled"] or f"wants {target['desired']}"
    policy = f", policy {target['policy']}" if target["policy"] else ""
    console.print(f"    {at} {target['mode']}{policy}: {verdict}", markup=False)
    console.print(f"    {target['reason']}", markup=False)
