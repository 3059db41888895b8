"""Verifies every block of the layers in use, in the background, after their containers started.

Only layers of cache volumes: the node's own were hashed while they were written. A bad block drops
the layer, and the copies that run on it get a new container over a fresh pull.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path

from zeropull.errors import IntegrityError, NotFound
from zeropull.imagecache.verify import verify_blocks
from zeropull.nodeagent.catalog import Catalog
from zeropull.nodeagent.images import NodeImages
from zeropull.resources.node import SNAPSHOTTER
from zeropull.telemetry import get_logger

INTERVAL_S = 5.0
_IDLE_CLASS = 3 << 13
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}

_libc = ctypes.CDLL(None, use_errno=True)

log = get_logger(__name__)


class Scrubber:
    """Looks at every ready image once. `replace_users_of(manifest digest, reason)` restarts."""

    def __init__(
        self,
        catalog: Catalog,
        images: NodeImages,
        replace_users_of: Callable[[str, str], None],
    ) -> None:
        self._catalog = catalog
        self._images = images
        self._replace_users_of = replace_users_of
        self._clean: set[str] = set()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.scrub_once()

    async def scrub_once(self) -> None:
        """Verify the layers that were not verified yet."""
        for image in list(self._images.ready.values()):
            if image.snapshotter != SNAPSHOTTER:
                continue
            for chain_id in image.chain_ids:
                if chain_id in self._clean or self._catalog.is_own(chain_id):
                    continue
                await self._scrub(chain_id)

    def condemn(self, chain_id: str, reason: str) -> None:
        """The volume's copy of the layer is damaged: nothing runs on it from now on."""
        log.error("a layer of the cache volume is damaged", chain_id=chain_id, reason=reason)
        self._catalog.drop(chain_id, reason)
        for image in list(self._images.ready.values()):
            if chain_id in image.chain_ids:
                self._images.spoil(image.manifest_digest)
                why = f"layer {chain_id} of the cache volume is damaged: {reason}"
                self._replace_users_of(image.manifest_digest, why)

    async def _scrub(self, chain_id: str) -> None:
        path = self._catalog.target(chain_id)
        if path is None:
            return
        try:
            await asyncio.to_thread(_verify_quietly, path)
        except NotFound:
            return
        except (IntegrityError, OSError) as error:
            self.condemn(chain_id, str(error))
            return
        self._clean.add(chain_id)


def _verify_quietly(path: Path) -> None:
    """In a thread of its own class: reads only when the disk is idle, computes when nobody else
    does."""
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, 19)
    set_io_class(thread, _IDLE_CLASS)
    try:
        verify_blocks(path)
    finally:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, before)
        set_io_class(thread, 0)


def set_io_class(thread: int, value: int) -> None:
    """ioprio_set(2), which no library wraps; on other machines the default class stays."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        _libc.syscall(number, 1, thread, value)
