"""What every stored document has: a kind, which names its type, and a key, unique within the kind.

Documents are frozen dataclasses, kept as JSON by `zeropull.statestore`. A field that is added later
needs a default; a field that goes is ignored when an old document is read.
"""

from __future__ import annotations

import secrets
from typing import ClassVar, Protocol


class Document(Protocol):
    """A frozen dataclass that the store can keep."""

    kind: ClassVar[str]

    @property
    def key(self) -> str:
        """Unique within the kind; parts are joined by `/`, from the general to the special."""


def new_uid() -> str:
    """32 random hex digits: never used twice, not even for the same endpoint name."""
    return secrets.token_hex(16)


def new_instance_id() -> str:
    """ "i-" and 17 hex digits, as on AWS."""
    return "i-" + secrets.token_hex(9)[:17]


def new_copy_id() -> str:
    """ "c-" and 17 hex digits."""
    return "c-" + secrets.token_hex(9)[:17]
