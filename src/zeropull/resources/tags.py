"""Tags of one resource."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class ResourceTags:
    """All tags of one ARN, in the order in which they were first set."""

    kind: ClassVar[str] = "tags"

    arn: str
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.arn
