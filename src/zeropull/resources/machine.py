"""What the store knows of the machine under it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Machine:
    """The boot in which this store was served last, as the kernel names it."""

    kind: ClassVar[str] = "machine"
    key: ClassVar[str] = "local"

    boot_id: str
