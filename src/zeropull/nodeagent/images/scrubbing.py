"""Verifies every block of the layers in use, in the background, while nothing is launched.

Only layers of cache volumes: the node's own were hashed while they were written. A bad block drops
the layer, and the copies that run on it get a new container over a fresh pull.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

from zeropull.errors import IntegrityError, NotFound
from zeropull.layers.layout import read_layer_index
from zeropull.layers.verify import verify_blocks
from zeropull.linux.processes import low_priority
from zeropull.nodeagent.images.catalog import Catalog
from zeropull.nodeagent.images.node_images import NodeImages
from zeropull.nodeagent.quiet_times import LaunchesUnderWay, QuietWait
from zeropull.resources.node import SNAPSHOTTER
from zeropull.telemetry import get_logger

INTERVAL_S = 5.0
PATIENCE_S = 60.0  # layers are not left unverified for longer because of launches
_BATCH_BLOCKS = 256  # between two looks at the launches: 64 MiB

log = get_logger(__name__)


class Scrubber:
    """Looks at every ready image once. `replace_users_of(manifest digest, reason)` restarts."""

    def __init__(
        self,
        catalog: Catalog,
        images: NodeImages,
        launches: LaunchesUnderWay,
        replace_users_of: Callable[[str, str], None],
    ) -> None:
        self._catalog = catalog
        self._launches = launches
        self._images = images
        self._replace_users_of = replace_users_of
        self._clean: set[str] = set()
        self._stop = threading.Event()

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(INTERVAL_S)
                await self.scrub_once()
        finally:
            self._stop.set()  # the thread, which cannot be cancelled

    async def scrub_once(self) -> None:
        """Verify the layers that were not verified yet."""
        quiet = self._launches.quiet_wait(PATIENCE_S)
        for image in list(self._images.ready.values()):
            if image.snapshotter != SNAPSHOTTER:
                continue
            for chain_id in image.chain_ids:
                if chain_id in self._clean or self._catalog.is_own(chain_id):
                    continue
                await self._scrub(chain_id, quiet)

    def condemn(self, chain_id: str, reason: str) -> None:
        """The volume's copy of the layer is damaged: nothing runs on it from now on."""
        log.error("a layer of the cache volume is damaged", chain_id=chain_id, reason=reason)
        self._catalog.drop(chain_id, reason)
        for image in list(self._images.ready.values()):
            if chain_id in image.chain_ids:
                self._images.spoil(image.manifest_digest)
                why = f"layer {chain_id} of the cache volume is damaged: {reason}"
                self._replace_users_of(image.manifest_digest, why)

    async def _scrub(self, chain_id: str, quiet: QuietWait) -> None:
        path = self._catalog.target(chain_id)
        if path is None:
            return
        try:
            await asyncio.to_thread(self._verify, path, quiet)
        except NotFound:
            return
        except (IntegrityError, OSError) as error:
            self.condemn(chain_id, str(error))
            return
        self._clean.add(chain_id)

    def _verify(self, path: Path, quiet: QuietWait) -> None:
        with low_priority():
            blocks = range(read_layer_index(path).data.blocks)
            for start in range(0, len(blocks), _BATCH_BLOCKS):
                quiet.wait(self._stop)
                if self._stop.is_set():
                    return
                verify_blocks(path, blocks[start : start + _BATCH_BLOCKS])
