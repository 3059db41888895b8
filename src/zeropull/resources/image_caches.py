"""The image cache of one endpoint, as the store knows it; its files are `zeropull.imagecache`'s."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class CacheState(StrEnum):
    """ACTIVE until the endpoint is deleted, then PURGING until the files are gone, then PURGED."""

    ACTIVE = "active"
    PURGING = "purging"
    PURGED = "purged"


class GenerationState(StrEnum):
    """BUILDING -> PUBLISHED -> CONDEMNED (a newer one replaced it, its last user keeps it) -> gone.

    REFUSED: no room for it; `message` has the disk arithmetic. It is tried again from `retry_s` on.
    """

    BUILDING = "building"
    PUBLISHED = "published"
    CONDEMNED = "condemned"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """One generation. `images` are manifest digests; `index_digest` is that of generation.json."""

    number: int
    state: GenerationState
    created_s: float
    images: tuple[str, ...] = ()
    index_digest: str = ""
    path: str = ""
    size_bytes: int = 0
    message: str = ""
    refusals: int = 0  # builds in a row, this one and those before it, that found no room
    retry_s: float = 0.0  # of a refused one


@dataclass(frozen=True, slots=True)
class ImageCacheRecord:
    """Keyed by the endpoint's uid; outlives the endpoint until the purge is done and proved."""

    kind: ClassVar[str] = "image_cache"

    endpoint_uid: str
    account: str
    endpoint: str
    state: CacheState
    created_s: float
    generations: tuple[GenerationRecord, ...] = ()  # oldest first
    next_generation: int = 1
    purge_wanted_s: float | None = None
    purged_s: float | None = None
    freed_bytes: int = 0
    message: str = ""

    @property
    def key(self) -> str:
        return self.endpoint_uid

    @property
    def newest_published(self) -> GenerationRecord | None:
        return next(
            (g for g in reversed(self.generations) if g.state is GenerationState.PUBLISHED), None
        )
