"""What one blob is read from, in a form that another process can be given."""

from __future__ import annotations

from dataclasses import dataclass

from zeropull.resources.sources import RegistryAccess


@dataclass(frozen=True, slots=True)
class BlobSource:
    """All that is needed to read one blob; it can be pickled.

    `authorization` is the header that worked last; `access` gets a new one when that expires.
    `others` are the same blob elsewhere, asked in this order when this one fails.
    """

    url: str
    host: str
    repository: str
    digest: str
    size: int
    access: RegistryAccess | None
    authorization: str | None
    user_agent: str
    others: tuple[BlobSource, ...] = ()
