"""Accounts and their access keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Account:
    """A tenant. `account` is 12 digits and stands in every ARN."""

    kind: ClassVar[str] = "account"

    account: str
    name: str
    created_s: float

    @property
    def key(self) -> str:
        return self.account


@dataclass(frozen=True, slots=True)
class StoredKey:
    """An access key with its secret; the store's file is readable by its owner only."""

    kind: ClassVar[str] = "access_key"

    access_key_id: str
    secret_access_key: str = field(repr=False)
    account: str
    created_s: float
    enabled: bool = True

    @property
    def key(self) -> str:
        return self.access_key_id
