"""Start profiles on a node: recorded at an image's first start, read ahead at later ones.

Where a cache volume, or the node itself, has the image's profile, its pages are read ahead as soon
as the image is available, beside the model's download and the container's set-up. Otherwise the
first container's start is recorded, to N/profiles/<manifest hex>.json, from where the control plane
brings it into the generation.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from zeropull.controlapi.messages import NodeAssignment
from zeropull.errors import IntegrityError, NotFound, ZeropullError
from zeropull.imagecache.layout import generation_profile
from zeropull.linux.files import EVERYBODY_READS, replace_file
from zeropull.linux.processes import low_priority
from zeropull.nodeagent.images.catalog import Catalog
from zeropull.nodeagent.images.image_on_node import ImageOnNode
from zeropull.nodeagent.quiet_times import LaunchesUnderWay, QuietWait
from zeropull.oci.digests import hex_of
from zeropull.resources.node import SNAPSHOTTER, NodeConfig
from zeropull.startprofiles.profile import StartProfile, encode_profile, read_profile
from zeropull.startprofiles.recording import MountedLayer, StartRecorder
from zeropull.startprofiles.warming import Warmed, read_ahead, verify_profile
from zeropull.tasks import TaskSet
from zeropull.telemetry import get_logger

# A start that takes longer is not waited for: its image's blocks are verified beside it.
VERIFY_PATIENCE_S = 20.0
MAX_TASKS = 1000  # at the same time: some for each copy of the node

log = get_logger(__name__)


class StartProfiles:
    """One for a node. Nothing here fails a start: what goes wrong is logged and left out.

    `condemn(chain_id, reason)` is called for a layer with a bad block; `mounted(snapshotter, top
    chain ID)` gives where an image's layers are mounted, the uppermost first. `starts` are the
    containers that were started and do not answer yet."""

    def __init__(
        self,
        config: NodeConfig,
        catalog: Catalog,
        assignment: Callable[[], NodeAssignment | None],
        starts: LaunchesUnderWay,
        condemn: Callable[[str, str], None],
        mounted: Callable[[str, str], Awaitable[Sequence[Path]]],
        *,
        tracefs: Path | None = None,
    ) -> None:
        self._config = config
        self._catalog = catalog
        self._assignment = assignment
        self._starts = starts
        self._condemn = condemn
        self._mounted = mounted
        self._tracefs = tracefs
        self._warmed: set[str] = set()
        self._recorders: dict[str, tuple[str, StartRecorder]] = {}
        self._tasks = TaskSet[int, None]("start profiles", limit=MAX_TASKS)
        self._started = itertools.count()
        self._stop = threading.Event()
        self._numbers = itertools.count()

    def warm_up(self, image: ImageOnNode) -> None:
        """Begin to read the image's profile ahead, once in an agent's life; returns at once."""
        if not image.chain_ids or image.snapshotter != SNAPSHOTTER:
            return
        if image.manifest_digest not in self._warmed:
            self._warmed.add(image.manifest_digest)
            self._begin(self._warm(image))

    async def record(self, copy_id: str, image: ImageOnNode, lowers: Sequence[Path]) -> None:
        """Watch the start of the copy's container, if nobody knows the image's profile yet.
        `lowers` are its mounted layers, the uppermost first."""
        digest = image.manifest_digest
        known = any(path.exists() for path in self._places(digest))
        watched = any(each == digest for each, _ in self._recorders.values())
        if image.snapshotter != SNAPSHOTTER or known or watched:
            return
        if len(lowers) != len(image.chain_ids):
            return
        layers = []
        for chain_id, mount in zip(image.chain_ids, reversed(lowers), strict=True):
            directory = self._catalog.target(chain_id)
            if directory is None:
                return
            layers.append(MountedLayer(chain_id, directory, mount))
        # One number for each: the trace of the one before may still be on its way out.
        name = f"{self._config.trace_prefix}{hex_of(digest)[:12]}-{next(self._numbers)}"
        recorder = StartRecorder(name, digest, layers, tracefs=self._tracefs)
        self._recorders[copy_id] = (digest, recorder)
        await asyncio.to_thread(recorder.begin)

    def healthy(self, copy_id: str) -> None:
        """The copy answers: what it has read until now is the profile."""
        watched = self._recorders.pop(copy_id, None)
        if watched is not None:
            self._begin(self._keep(*watched))

    def ended(self, copy_id: str) -> None:
        """The copy's container is gone; a recording of its start is worth nothing."""
        watched = self._recorders.pop(copy_id, None)
        if watched is not None:
            self._begin(asyncio.to_thread(watched[1].cancel))

    async def close(self) -> None:
        self._stop.set()
        for copy_id in list(self._recorders):
            self.ended(copy_id)
        await self._tasks.wait()

    async def _warm(self, image: ImageOnNode) -> None:
        began_s = time.monotonic()
        profile = await asyncio.to_thread(self._find, image)
        if profile is None:
            return
        try:
            mounts = await self._mounted(image.snapshotter, image.chain_ids[-1])
        except ZeropullError as error:
            log.warning("start profile is not read ahead", image=image.name, reason=str(error))
            return
        if len(mounts) != len(profile.chain_ids):
            log.warning("start profile is not read ahead", image=image.name, mounts=len(mounts))
            return
        lowest_first = list(reversed(mounts))
        read_bytes = await asyncio.to_thread(read_ahead, profile, lowest_first, self._stop)
        read_s = time.monotonic() - began_s
        log.info(
            "start profile is warm",
            image=image.name,
            profile_bytes=read_bytes,
            seconds=round(read_s, 3),
        )
        # Only now: these are more bytes than the profile, and the container waits for none of them.
        # They are verified beside the model's download; a container that starts meanwhile has for
        # itself what a slow volume gives.
        quiet = self._starts.quiet_wait(VERIFY_PATIENCE_S)
        done = await asyncio.to_thread(self._verify, profile, quiet)
        for chain_id, reason in done.bad.items():
            self._condemn(chain_id, reason)
        log.info(
            "start profile is verified",
            image=image.name,
            blocks=done.verified_blocks,
            bad_layers=len(done.bad),
            seconds=round(time.monotonic() - began_s - read_s, 3),
        )

    def _verify(self, profile: StartProfile, quiet: QuietWait) -> Warmed:
        with low_priority():
            return verify_profile(
                profile, self._catalog.target, self._stop, lambda: quiet.wait(self._stop)
            )

    def _find(self, image: ImageOnNode) -> StartProfile | None:
        for path in self._places(image.manifest_digest):
            try:
                profile = read_profile(path)
            except NotFound:
                continue
            except IntegrityError as error:
                log.warning("start profile is not used", path=str(path), reason=str(error))
                continue
            if profile.chain_ids == image.chain_ids:
                return profile
        return None

    async def _keep(self, digest: str, recorder: StartRecorder) -> None:
        try:
            profile = await asyncio.to_thread(recorder.finish)
            if profile.runs:
                await asyncio.to_thread(_write, self._own(digest), encode_profile(profile))
        except (OSError, IntegrityError) as error:
            log.warning("start profile was not recorded", manifest=digest, reason=str(error))
            return
        log.info(
            "start profile is recorded",
            manifest=digest,
            profile_bytes=profile.size_bytes,
            runs=len(profile.runs),
            ordered=profile.ordered,
        )

    def _places(self, digest: str) -> list[Path]:
        assignment = self._assignment()
        volumes = assignment.volumes if assignment else ()
        return [*(generation_profile(Path(v.path), digest) for v in volumes), self._own(digest)]

    def _own(self, digest: str) -> Path:
        return self._config.profiles_dir / f"{hex_of(digest)}.json"

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        if self._tasks.is_full:
            work.close()
            log.warning("too many start profiles at once")
            return
        self._tasks.start(next(self._started), work)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    replace_file(path, content, mode=EVERYBODY_READS)
