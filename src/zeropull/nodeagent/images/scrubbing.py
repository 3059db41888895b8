"""Verifies every block of the node's layers in the background.

- A cache volume's layers are verified once, as soon as an image that uses them is ready and nothing
  is launched. So are layers that the control plane suspects.
- The node's own layers, and those of volumes again, are verified in passes: all of them every
  `scrub_interval_s`, at no more than `scrub_bytes_per_s`. Where the file system has fs-verity, the
  kernel vouches for own layers from the first pass on, so that no container reads a wrong byte.

A bad block drops the layer. Copies that run on it get a new container over a fresh pull.
"""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropull.delivery.arriving import is_arriving
from zeropull.errors import IntegrityError, NotFound
from zeropull.layers.layout import (
    DATA_FILE,
    LAYER_FILE,
    META_FILE,
    LayerIndex,
    layer_directory,
    read_layer_index,
)
from zeropull.layers.verify import verify_blocks, verify_metadata
from zeropull.linux.processes import low_priority
from zeropull.linux.verity import enable_verity
from zeropull.nodeagent.images.catalog import Catalog
from zeropull.nodeagent.images.node_images import NodeImages
from zeropull.nodeagent.quiet_times import LaunchesUnderWay, QuietWait
from zeropull.oci.digests import digest_of
from zeropull.resources.node import SNAPSHOTTER
from zeropull.telemetry import get_logger

INTERVAL_S = 5.0
PATIENCE_S = 60.0  # layers of a volume are not left unverified for longer because of launches
PASS_PATIENCE_S = 3600.0  # of a pass, which nobody waits for
_BATCH_BLOCKS = 256  # between two looks at the launches: 64 MiB
_PACED_BATCH_BLOCKS = 16  # between two pauses: 4 MiB
_DAMAGED = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ScrubPace:
    """All layers every `interval_s` seconds, 0 = never; at most `bytes_per_s`, 0 = no limit."""

    interval_s: float
    bytes_per_s: int


class Scrubber:
    """One for a node. `suspects` are chain IDs of own layers that the control plane doubts;
    `replace_users_of(manifest digest, reason)` gives copies a new container."""

    def __init__(
        self,
        catalog: Catalog,
        images: NodeImages,
        launches: LaunchesUnderWay,
        replace_users_of: Callable[[str, str], None],
        *,
        pace: ScrubPace,
        suspects: Callable[[], Collection[str]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._images = images
        self._launches = launches
        self._replace_users_of = replace_users_of
        self._pace = pace
        self._suspects = suspects
        self._clock = clock
        self._verified_s: dict[Path, float] = {}
        self._checked_suspects: set[str] = set()
        self._has_verity = True  # until an attempt says otherwise
        self._stop = threading.Event()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._repeat(self.scrub_once))
                group.create_task(self._repeat(self.scrub_due))
        finally:
            self._stop.set()  # the threads, which cannot be cancelled

    async def scrub_once(self) -> None:
        """Verify at once what must not wait: a volume's layers that were never verified, and
        suspects."""
        quiet = self._launches.quiet_wait(PATIENCE_S)
        suspects = set(self._suspects())
        self._checked_suspects &= suspects
        for chain_id in suspects - self._checked_suspects:
            self._checked_suspects.add(chain_id)
            await self._scrub(layer_directory(self._catalog.layers, chain_id), quiet)
        for path in self._in_use():
            if path not in self._verified_s and not self._catalog.is_in_store(path):
                await self._scrub(path, quiet)

    async def scrub_due(self) -> None:
        """Verify, at the pace, what no pass has verified for the interval."""
        if not self._pace.interval_s:
            return
        own = await asyncio.to_thread(self._catalog.own_layers)
        layers = [*own, *(each for each in self._in_use() if each in self._verified_s)]
        for path in self._verified_s.keys() - layers:
            del self._verified_s[path]
        quiet = self._launches.quiet_wait(PASS_PATIENCE_S)
        for path in plan_pass(layers, self._verified_s, self._clock(), self._pace.interval_s):
            await self._scrub(path, quiet, paced=True)

    def condemn(self, chain_id: str, reason: str) -> None:
        """The bytes that the layer's entry leads to are damaged: nothing runs on them from now
        on."""
        path = self._catalog.target(chain_id)
        where = "the node's disk" if path and self._catalog.is_in_store(path) else "a cache volume"
        log.error("a layer is damaged", chain_id=chain_id, where=where, reason=reason)
        self._catalog.drop(chain_id, reason)
        for image in list(self._images.ready.values()):
            if chain_id in image.chain_ids:
                self._images.spoil(image.manifest_digest)
                why = f"layer {chain_id} on {where} is damaged: {reason}"
                self._replace_users_of(image.manifest_digest, why)

    async def _repeat(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await work()

    def _in_use(self) -> list[Path]:
        """Layer directories of the images that are ready, each once."""
        chains = [
            chain_id
            for image in self._images.ready.values()
            if image.snapshotter == SNAPSHOTTER
            for chain_id in image.chain_ids
        ]
        found = (self._catalog.target(chain_id) for chain_id in dict.fromkeys(chains))
        return [path for path in found if path is not None]

    async def _scrub(self, path: Path, quiet: QuietWait, *, paced: bool = False) -> None:
        if is_arriving(path.resolve()):
            return  # each block is verified before anybody reads it
        chain_id = f"sha256:{path.name}"
        began_s = self._clock()
        try:
            whole = await asyncio.to_thread(self._verify, path, quiet, paced)
        except NotFound:
            self._verified_s.pop(path, None)
            return
        except IntegrityError as error:
            self._verified_s.pop(path, None)
            if not await asyncio.to_thread((path / LAYER_FILE).exists):
                return  # evicted, or its volume was detached
            if self._catalog.target(chain_id) == path:
                self.condemn(chain_id, str(error))
            elif self._catalog.is_in_store(path):
                self._catalog.drop_own(path, str(error))
            return
        if whole:
            self._verified_s[path] = began_s

    def _verify(self, path: Path, quiet: QuietWait, paced: bool) -> bool:
        """False: stopped before the end."""
        with low_priority():
            if self._catalog.is_in_store(path):
                # Before the blocks are read: what the kernel then vouches for is what they say.
                self._seal(path, quiet)
            index = verify_metadata(path)
            _check_names(path, index)
            blocks = range(index.data.blocks)
            batch = _PACED_BATCH_BLOCKS if paced else _BATCH_BLOCKS
            for start in range(0, len(blocks), batch):
                quiet.wait(self._stop)
                began_s = time.monotonic()
                if self._stop.is_set():
                    return False
                verify_blocks(path, blocks[start : start + batch])
                if paced:
                    self._pause(min(batch, len(blocks) - start), time.monotonic() - began_s, path)
        return True

    def _pause(self, blocks: int, took_s: float, path: Path) -> None:
        if self._pace.bytes_per_s:
            block_bytes = read_layer_index(path).data.block_bytes
            self._stop.wait(max(0.0, blocks * block_bytes / self._pace.bytes_per_s - took_s))

    def _seal(self, path: Path, quiet: QuietWait) -> None:
        if not self._has_verity:
            return
        quiet.wait(self._stop)
        for name in (DATA_FILE, META_FILE):
            try:
                self._has_verity = enable_verity(path / name)
            except OSError as error:
                if error.errno in _DAMAGED:
                    raise IntegrityError(f"{path / name} cannot be read: {error}") from error
                log.warning("fs-verity is not enabled", path=str(path / name), reason=str(error))
                return
            if not self._has_verity:
                log.info("no fs-verity here: layers are guarded by passes alone", path=str(path))
                return


def _check_names(path: Path, index: LayerIndex) -> None:
    """Nothing vouches for layer.json, but its names vouch for each other."""
    parent, diff_id = index.parent_chain_id, index.diff_id
    chain_id = digest_of(f"{parent} {diff_id}".encode()) if parent else diff_id
    if not index.chain_id == chain_id == f"sha256:{path.name}":
        raise IntegrityError(
            f"{path / LAYER_FILE} names the layer {index.chain_id}, its diff ID {diff_id} and its "
            f"parent {parent or 'none'}, which do not belong together"
        )


def plan_pass(
    layers: Iterable[Path], verified_s: dict[Path, float], now_s: float, interval_s: float
) -> list[Path]:
    """The layers that are due: never verified, or not for `interval_s`; the longest ago first."""
    last_s = {path: verified_s.get(path, float("-inf")) for path in layers}
    return sorted((p for p, at_s in last_s.items() if now_s - at_s >= interval_s), key=last_s.get)  # type: ignore[arg-type]
