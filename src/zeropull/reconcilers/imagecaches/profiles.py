"""Start profiles: nodes record the first start of an image; what they have goes beside the
generation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from zeropull.errors import ZeropullError
from zeropull.imagecache.generations import GenerationStore
from zeropull.providers.protocol import Provider
from zeropull.resources.image_caches import GenerationRecord
from zeropull.telemetry import get_logger

PROFILE_INTERVAL_S = 2.0  # between two looks for a start profile that a node has recorded

log = get_logger(__name__)


class ProfileKeeper:
    """Knows which profiles are there already, and when to look again."""

    def __init__(self, provider: Provider, generations: GenerationStore) -> None:
        self._provider = provider
        self._generations = generations
        self._kept: set[tuple[str, str]] = set()  # path of the generation, manifest digest
        self._not_before_s: dict[str, float] = {}

    def sought(self, uid: str, newest: GenerationRecord, now_s: float) -> list[str]:
        """Manifest digests of images without a profile; none when it is too early to look."""
        if now_s < self._not_before_s.get(uid, 0.0):
            return []
        return self._lacking(newest)

    def lacks(self, newest: GenerationRecord) -> bool:
        """Whether an image of the generation has no profile yet, as far as is known."""
        return bool(self._lacking(newest))

    def _lacking(self, newest: GenerationRecord) -> list[str]:
        return [digest for digest in newest.images if (newest.path, digest) not in self._kept]

    def look_again_after(self, uid: str, now_s: float) -> None:
        self._not_before_s[uid] = now_s + PROFILE_INTERVAL_S

    def forget(self, uid: str) -> None:
        self._not_before_s.pop(uid, None)
        self._kept = {each for each in self._kept if f"/{uid}/" not in each[0]}

    async def bring(
        self,
        uid: str,
        generation: GenerationRecord,
        digests: Sequence[str],
        instance_ids: Sequence[str],
    ) -> None:
        """Ask the nodes, one after the other, for the profile of each image."""
        for digest in digests:
            known = await asyncio.to_thread(self._generations.has_profile, uid, digest)
            for instance_id in () if known else instance_ids:
                try:
                    content = await self._provider.collect_profile(instance_id, digest)
                    if content is None:
                        continue
                    known = await asyncio.to_thread(
                        self._generations.keep_profile, uid, digest, content
                    )
                except (ZeropullError, OSError) as error:
                    log.warning(
                        "start profile not taken", instance_id=instance_id, reason=str(error)
                    )
                    continue
                log.info("start profile kept", endpoint_uid=uid, manifest=digest)
                break
            if known:
                self._kept.add((generation.path, digest))
