"""What one launch cost: from `zeropull timeline --json` and the registry's own count."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

STAGES = ("provision", "image", "model", "start", "health")
PATHS = ("containerd", "fallback", "network", "cached")
"""In the order of the table. `network`: the cache crosses the new instance's link, as on a machine
that shares no disk with the control plane; `cached`: it is there as a volume."""


@dataclass(frozen=True)
class Launch:
    """One launch. Seconds by stage; bytes as the nodes and the registry counted them."""

    path: str
    stages_s: dict[str, float]
    total_s: float
    registry_bytes: int
    registry_requests: int
    volume_bytes_read: int
    layers_from_cache: int
    layers_total: int
    model_bytes: int
    first_response_s: float
    network_cache_bytes: int = 0
    evidence: str = field(default="", compare=False)


def read_launch(path: str, record: dict[str, Any], served: tuple[int, int]) -> Launch:
    """`record` is one launch of `zeropull timeline --json`, `served` what the registry counted."""
    stages = {stage["stage"]: stage for stage in record["stages"]}
    image = stages["image"]
    began_s = record["began_s"]
    return Launch(
        path=path,
        stages_s={name: _seconds(stages.get(name)) for name in STAGES},
        total_s=round(record["ready_s"] - began_s, 3),
        registry_requests=served[0],
        registry_bytes=served[1],
        volume_bytes_read=int(image["bytes_by_source"].get("volume", 0)),
        layers_from_cache=int(image.get("layers_from_cache") or 0),
        layers_total=int(image.get("layers_total") or 0),
        model_bytes=int(stages["model"]["bytes_by_source"].get("model_store", 0)),
        first_response_s=round(record["first_response_s"] - began_s, 3),
        network_cache_bytes=sum(
            int(stage["bytes_by_source"].get("network_cache", 0)) for stage in stages.values()
        ),
        evidence=image.get("detail", ""),
    )


def median_of(launches: Sequence[Launch]) -> dict[str, Any]:
    """One launch of medians, in the form of the demo's JSON."""
    first = launches[0]
    numbers = [asdict(launch) for launch in launches]

    def middle(key: str) -> float:
        return round(statistics.median(each[key] for each in numbers), 3)

    return {
        "stages_s": {
            name: round(statistics.median(each["stages_s"][name] for each in numbers), 3)
            for name in STAGES
        },
        "total_s": middle("total_s"),
        "registry_bytes": int(middle("registry_bytes")),
        "registry_requests": int(middle("registry_requests")),
        "volume_bytes_read": int(middle("volume_bytes_read")),
        "layers_from_cache": int(middle("layers_from_cache")),
        "layers_total": first.layers_total,
        "model_bytes": first.model_bytes,
        "first_response_s": middle("first_response_s"),
        "network_cache_bytes": int(middle("network_cache_bytes")),
        "rounds": len(launches),
    }


def _seconds(stage: dict[str, Any] | None) -> float:
    if stage is None or stage.get("ended_s") is None:
        return 0.0
    return round(float(stage["ended_s"]) - float(stage["began_s"]), 3)
