"""Models: which containers, with which artifacts. Snapshots of them live on in deployments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One source of files under /opt/ml.

    `source_kind` "object" or "prefix"; `compression` "none" or "gzip" (a tar.gz, extracted);
    `target` is the folder in the container.
    """

    url: str
    source_kind: str = "object"
    compression: str = "gzip"
    target: str = "/opt/ml/model"
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One container as the user described it. `name` is what stands in ModelError texts."""

    image: str
    name: str = "primary"
    hostname: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    sources: tuple[ModelSource, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """`request` is what CreateModel was sent, without Tags: Describe gives it back."""

    kind: ClassVar[str] = "model"

    account: str
    name: str
    arn: str
    created_s: float
    containers: tuple[ContainerSpec, ...]
    request: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return model_key(self.account, self.name)


def model_key(account: str, name: str) -> str:
    """Model names are case-sensitive."""
    return f"{account}/{name}"
