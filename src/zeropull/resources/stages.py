"""The stages of a launch and what each one cost: the vocabulary of every timeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Stage(StrEnum):
    """In the order in which they are drawn; image and model run side by side."""

    DETECT = "detect"
    PROVISION = "provision"
    IMAGE = "image"
    MODEL = "model"
    START = "start"
    HEALTH = "health"
    ROUTE = "route"


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage of one copy. Times are Unix seconds (float); `ended_s` None = still running.

    `bytes_by_source` keys: "registry" (bytes received from a registry), "volume" (bytes read from
    the cache volume), "network_cache" (bytes of the image cache that came over the network), "node"
    (bytes that the node's own data cache already had), "model_store".
    `layers_from_cache` / `layers_total` are set on the image stage only.
    `detail` is one human sentence, for example
    "8/8 layers from the cache (100.0 %), 0 B from the registry".
    """

    stage: Stage
    began_s: float
    ended_s: float | None = None
    bytes_by_source: dict[str, int] = field(default_factory=dict)
    layers_from_cache: int | None = None
    layers_total: int | None = None
    path: str | None = None  # image stage: "cached" | "partial" | "fallback" | "containerd"
    detail: str = ""
