"""Attaches generations to running instances, and detaches those that nothing uses any more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from zeropull.backoff import Backoff
from zeropull.controlapi.exchange import Exchange
from zeropull.errors import ZeropullError
from zeropull.providers.protocol import Provider, Volume
from zeropull.resources.image_caches import GenerationRecord
from zeropull.resources.instances import AttachedVolume, Instance, InstanceState
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

DETACH_RETRY = Backoff(first_s=2.0, limit_s=300.0)  # while something on the node still uses it

log = get_logger(__name__)


class Volumes:
    """`unattachable`: instances that did not take a generation; they pull for themselves."""

    def __init__(
        self,
        store: Store,
        exchange: Exchange,
        provider: Provider,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._exchange = exchange
        self._provider = provider
        self._clock = clock
        self.unattachable: set[str] = set()
        self._busy: dict[tuple[str, int], tuple[int, float]] = {}  # failures, not before

    def forget_all_but(self, instance_ids: Collection[str]) -> None:
        self.unattachable &= set(instance_ids)
        for key in [each for each in self._busy if each[0] not in instance_ids]:
            del self._busy[key]

    async def attach(self, instance_id: str, generation: GenerationRecord) -> None:
        volume = Volume(generation.number, Path(generation.path), generation.index_digest)
        try:
            path = await self._provider.attach(instance_id, volume)
        except ZeropullError as error:
            self.unattachable.add(instance_id)
            log.warning("generation not attached", instance_id=instance_id, reason=error.reason)
            return
        if self._store.get(Instance, instance_id) is None:
            return
        attached = AttachedVolume(generation.number, path, generation.index_digest)

        def with_volume(instance: Instance) -> Instance:
            others = tuple(v for v in instance.volumes if v.generation != generation.number)
            return replace(instance, volumes=(*others, attached))

        instance = self._store.update(Instance, instance_id, with_volume)
        if instance.state is InstanceState.RUNNING:
            log.info("generation attached", instance_id=instance_id, generation=generation.number)
        self._exchange.note_progress()

    def mark(self, instances: Collection[Instance], leaving: Mapping[str, frozenset[int]]) -> None:
        """Write down which generations are to leave. The next assignment is without them, so that
        the node lets go of them; one that is needed again comes back with it."""
        for instance in instances:
            gone = leaving.get(instance.instance_id, frozenset())
            volumes = tuple(replace(v, leaving=v.generation in gone) for v in instance.volumes)
            if volumes != instance.volumes:
                self._store.update(Instance, instance.instance_id, partial(_marked, gone))
                self._exchange.note_progress()

    def to_detach(self, instance: Instance, now_s: float) -> tuple[int, ...]:
        """Leaving generations that the node has let go of, as far as it says."""
        topic = self._exchange.assignments.get(instance.instance_id)
        received = self._exchange.nodes.get(instance.instance_id)
        if topic is None or topic.message is None or received is None:
            return ()
        report = received.report
        if not self._exchange.told(
            topic.message, report.assignment_version, report.assignment_epoch
        ):
            return ()
        told = {volume.generation for volume in topic.message.volumes}
        return tuple(
            v.generation
            for v in instance.volumes
            if v.leaving
            and v.generation not in told
            and now_s >= self._busy.get((instance.instance_id, v.generation), (0, 0.0))[1]
        )

    async def detach(self, instance_id: str, generations: tuple[int, ...]) -> None:
        for number in generations:
            try:
                await self._provider.detach(instance_id, number)
            except ZeropullError as error:
                failures = self._busy.get((instance_id, number), (0, 0.0))[0] + 1
                retry_s = DETACH_RETRY.after(failures)
                self._busy[instance_id, number] = (failures, self._clock() + retry_s)
                log.warning(
                    "generation not detached",
                    instance_id=instance_id,
                    generation=number,
                    reason=error.reason,
                    retry_in_s=retry_s,
                )
                continue
            self._busy.pop((instance_id, number), None)
            if self._store.get(Instance, instance_id) is not None:
                self._store.update(Instance, instance_id, partial(_without, number))
            log.info("generation detached", instance_id=instance_id, generation=number)


def _marked(leaving: frozenset[int], instance: Instance) -> Instance:
    marked = tuple(replace(v, leaving=v.generation in leaving) for v in instance.volumes)
    return replace(instance, volumes=marked)


def _without(generation: int, instance: Instance) -> Instance:
    kept = tuple(v for v in instance.volumes if v.generation != generation)
    return replace(instance, volumes=kept)
