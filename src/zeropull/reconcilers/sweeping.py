"""Compares what the engine has with what the store knows: sweeps the unknown, mends the known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from zeropull.errors import NotFound, ZeropullError
from zeropull.reconcilers.engine import Engine
from zeropull.reconcilers.probing import answers_ping
from zeropull.reconcilers.silence import Silence
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import CopyRecord, Instance, InstanceState
from zeropull.statestore import Store
from zeropull.statestore.cached_kind import CachedKind
from zeropull.telemetry import get_logger

SWEEP_INTERVAL_S = 3.0  # how often the engine is asked what is there, and to mend it
MAX_ASKED = 3  # copies of a silent instance: the first that answers is enough

log = get_logger(__name__)


class Sweeper:
    """`on_change` gets the instances that are there other than at the last sweep, or that are not
    there though they were asked for."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        silence: Silence,
        on_change: Callable[[frozenset[str]], None],
    ) -> None:
        self._store = store
        self._endpoints = CachedKind(store, Endpoint)
        self._instances = CachedKind(store, Instance)
        self._engine = engine
        self._silence = silence
        self._on_change = on_change
        self._present: frozenset[str] | None = None
        self._asked_for: frozenset[str] = frozenset()

    def is_there(self, instance: Instance) -> bool | None:
        """Whether the engine has it; None when it has not been asked since the instance ran."""
        if instance.instance_id not in self._asked_for:
            return None
        return self._present is not None and instance.instance_id in self._present

    async def try_to_sweep(self) -> None:
        """`sweep`, with its failure in the log: the next one tries again."""
        try:
            await self.sweep()
        except ZeropullError as error:
            log.warning("the engine does not answer", error=error.reason)
        except Exception as error:  # of the operating system, say
            log.error("the engine does not answer", error=str(error), exc_info=error)

    async def sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            await self.try_to_sweep()

    async def ask_silent_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            try:
                await self.ask_silent()
            except Exception as error:  # the next look tries again
                log.error("silent instances not asked", error=str(error), exc_info=error)

    async def sweep(self) -> None:
        """Ask what is there; end what the store does not know; mend what it does.

        What fails for one endpoint or instance does not keep the others from being mended.
        """
        for endpoint in self._endpoints.all():
            await asyncio.sleep(0)  # a thousand of them must not hold the loop
            try:
                await self._engine.prepare(endpoint)
            except ZeropullError as error:
                log.warning("not prepared", endpoint=endpoint.name, error=error.reason)
        ran = (InstanceState.RUNNING, InstanceState.DRAINING)
        asked_for = frozenset(i.instance_id for i in self._instances.all() if i.state in ran)
        found = set(await self._engine.list_instances())
        known = {i.instance_id: i for i in self._instances.all()}
        for instance_id in sorted(found - known.keys()):
            log.warning("unknown instance swept", instance_id=instance_id)
            try:
                await self._engine.terminate(instance_id)
            except ZeropullError as error:
                log.warning("instance not swept", instance_id=instance_id, error=error.reason)
        for instance_id in sorted(found & known.keys()):
            if known[instance_id].state not in (InstanceState.RUNNING, InstanceState.DRAINING):
                continue
            try:
                if await self._engine.heal(instance_id):
                    log.warning("instance healed", instance_id=instance_id)
            except NotFound:
                found.discard(instance_id)
            except ZeropullError as error:
                log.warning("instance not healed", instance_id=instance_id, error=error.reason)
        before, self._present = self._present, frozenset(found)
        self._asked_for = asked_for
        changed = asked_for - self._present
        if before is not None:
            changed |= before ^ self._present
        if changed or before is None:
            self._on_change(changed)

    async def ask_silent(self) -> None:
        """Ask the copies of silent instances whether they are there: an agent may be stuck, or be
        stopped, while its containers serve."""
        asked: dict[str, list[CopyRecord]] = {}
        for instance in self._instances.all():
            heard_s = self._engine.heard_s(instance.instance_id)
            if self._silence.is_doubtful(instance, heard_s):
                copies = self._store.select(CopyRecord, instance_id=instance.instance_id)
                asked[instance.instance_id] = [
                    c.document for c in copies if c.document.host and c.document.healthy_s
                ]
        for instance_id, copies_there in asked.items():
            for copy in copies_there[:MAX_ASKED]:
                if await answers_ping(copy.host or "", copy.port):
                    log.info("a silent instance serves", instance_id=instance_id)
                    self._silence.answered(instance_id)
                    break
