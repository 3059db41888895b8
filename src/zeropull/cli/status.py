"""Tables of endpoints and the reasons behind their state."""

from __future__ import annotations

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
    for instance in endpoint["instances"]:
        console.print(f"  {instance['instance_id']} {instance['state']}: {instance['reason']}")
        if instance["failure"]:
            console.print(f"    {instance['failure']}", markup=False)
        for copy in instance["copies"]:
            text = f"    {copy['copy_id']} {copy['state']}, {copy['restarts']} restarts"
            console.print(f"{text}: {copy['message']}" if copy["message"] else text, markup=False)
