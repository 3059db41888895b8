"""Cache volumes that come over the network: the node's receiver brings them and the agent asks it.

A volume looks the same whether it is attached or arrives: a folder with a generation. An arriving
one is there once its metadata is; its data follows while containers read it already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zeropull.controlapi.messages import VolumeMount
from zeropull.delivery.control import ReceiverClient
from zeropull.delivery.receiver import ReceiverState
from zeropull.errors import ZeropullError
from zeropull.telemetry import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What has come over the network since the receiver's start: bytes of data, how many reads
    waited for some, and for how long together, in seconds."""

    data_bytes: int = 0
    faults: int = 0
    wait_s: float = 0.0

    def since(self, before: Arrival) -> Arrival:
        """A receiver that was started anew meanwhile has begun to count again."""
        if before.data_bytes > self.data_bytes or before.faults > self.faults:
            return self
        return Arrival(
            self.data_bytes - before.data_bytes,
            self.faults - before.faults,
            self.wait_s - before.wait_s,
        )

    @property
    def detail(self) -> str:
        """For people; "" when nothing has come."""
        if not self.data_bytes and not self.faults:
            return ""
        return (
            f"{self.data_bytes:,} B from the network cache, "
            f"{self.faults} reads waited {self.wait_s:.2f} s together for some of them"
        )


class ArrivingVolumes:
    """The volumes of a node with a receiver at `socket`; None: volumes are attached as they are,
    and every call does nothing."""

    def __init__(self, socket: Path | None) -> None:
        self._client = ReceiverClient(socket) if socket is not None else None
        self._here: set[VolumeMount] = set()
        self._lock = asyncio.Lock()
        self._epoch = ""

    @property
    def is_in_use(self) -> bool:
        return self._client is not None

    async def bring(self, volumes: Sequence[VolumeMount]) -> None:
        """Have the newest volume brought. One that does not come is no failure: what it would give
        is pulled."""
        if self._client is None or not volumes:
            return
        newest = volumes[0]
        async with self._lock:
            if newest in self._here:
                return
            try:
                await asyncio.to_thread(self._client.attach, newest.generation, newest.index_digest)
            except ZeropullError as error:
                log.warning(
                    "the image cache does not arrive",
                    generation=newest.generation,
                    reason=error.reason,
                )
            else:
                self._here.add(newest)

    async def keep_only(self, volumes: Sequence[VolumeMount]) -> None:
        """Let go of volumes that are assigned no more, also of those that an earlier agent had
        brought: the receiver knows them."""
        if self._client is None:
            return
        wanted = {volume.generation for volume in volumes}
        async with self._lock:
            self._here &= set(volumes)
            try:
                state = await asyncio.to_thread(self._client.state)
                for here in state.generations:
                    if here.generation not in wanted:
                        await asyncio.to_thread(self._client.detach, here.generation)
            except ZeropullError as error:
                log.warning("volumes not let go", reason=error.reason)

    async def bring_rest(self) -> None:
        """No launch needs the link: what no reader has asked for may come."""
        if self._client is None:
            return
        try:
            await asyncio.to_thread(self._client.bring_rest)
        except ZeropullError as error:
            log.warning("the rest of the image cache does not come", reason=error.reason)

    async def newly_broken(self) -> frozenset[str]:
        """Chain IDs of layers that a dead receiver had not finished and nobody has held: what runs
        on their mounts must go. Each is told once for each start of the receiver."""
        if self._client is None:
            return frozenset()
        try:
            state = await asyncio.to_thread(self._client.state)
        except ZeropullError:
            return frozenset()
        if state.epoch == self._epoch:
            return frozenset()
        self._epoch = state.epoch
        return frozenset(state.broken)

    async def arrival(self) -> Arrival:
        """What has come so far; nothing when the receiver does not say."""
        if self._client is None:
            return Arrival()
        try:
            state = await asyncio.to_thread(self._client.state)
        except ZeropullError:
            return Arrival()
        return arrival_of(state)


def arrival_of(state: ReceiverState) -> Arrival:
    return Arrival(sum(state.bytes.values()), state.faults, state.fault_wait_s)
