"""Runs the slow effects of plans: at most one per target, its outcome written back to the store."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from zeropull.errors import NoCapacity, Unavailable, ZeropullError
from zeropull.reconcilers.engine import Engine
from zeropull.reconcilers.folding import ended
from zeropull.reconcilers.plan import Action, Effect
from zeropull.reconcilers.resolving import Resolver
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import CopyRecord, Instance, InstanceState, TimelineRecord
from zeropull.resources.settings import EndpointSettings
from zeropull.statestore import Store
from zeropull.tasks import TaskSet
from zeropull.telemetry import get_logger

MAX_EFFECTS = 1000  # at the same time

log = get_logger(__name__)


class Effects:
    """Launches, terminations and resolutions in progress; `close` cancels them all."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        resolver: Resolver,
        *,
        settings: EndpointSettings,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        on_done: Callable[[str], None],
    ) -> None:
        """`on_done` gets the key of the endpoint whose effect has ended well."""
        self._store = store
        self._engine = engine
        self._resolver = resolver
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self._on_done = on_done
        self._running = TaskSet[str, None]("effects", limit=MAX_EFFECTS, on_end=self._finished)
        self._effects: dict[str, tuple[Effect, str]] = {}  # of what runs, with its endpoint
        self._refusals: dict[str, int] = {}
        self._failures: dict[str, tuple[int, float]] = {}  # in a row, and not before which moment

    async def close(self) -> None:
        """Cancel everything and wait; the next start finds in the store what was under way."""
        await self._running.close()

    async def settle(self) -> None:
        """Wait until nothing is under way."""
        await self._running.wait()

    def start(self, endpoint_key: str, action: Action) -> None:
        """Begin the action unless it runs; a termination first cancels a launch of its target.
        When too many effects run, nothing happens: the next round asks again."""
        running = self._running.get(action.target)
        if running is not None:
            is_launch = self._effects[action.target][0] is Effect.LAUNCH
            if action.effect is Effect.TERMINATE and is_launch:
                running.cancel()
            return
        if self._monotonic() < self._failures.get(action.target, (0, 0.0))[1]:
            return
        if self._running.is_full:
            log.warning("too many effects at once", effect=action.effect, target=action.target)
            return
        match action.effect:
            case Effect.RESOLVE:
                work = self._resolve(endpoint_key, action.target)
            case Effect.LAUNCH:
                work = self._launch(endpoint_key, action.target)
            case Effect.TERMINATE:
                work = self._terminate(action.target)
        self._effects[action.target] = action.effect, endpoint_key
        self._running.start(action.target, work)

    def _finished(self, target: str, error: BaseException | None) -> None:
        effect, endpoint_key = self._effects.pop(target)
        if error is not None:
            failures = self._failures.get(target, (0, 0.0))[0] + 1
            retry_s = self._settings.backoff.after(failures)
            self._failures[target] = (failures, self._monotonic() + retry_s)
            log.error(
                "effect failed", effect=effect, target=target, error=str(error), retry_in_s=retry_s
            )
            return
        self._failures.pop(target, None)
        self._on_done(endpoint_key)

    @property
    def has_failures(self) -> bool:
        return bool(self._failures)

    def forget_all_but(self, targets: Collection[str]) -> None:
        kept = frozenset(targets)
        for target in self._failures.keys() - kept:
            del self._failures[target]

    async def _resolve(self, endpoint_key: str, target: str) -> None:
        # Its registry and its model store may be new to instances that run already.
        endpoint = self._store.require(Endpoint, endpoint_key).document
        try:
            await self._engine.prepare(endpoint)
        except Exception as error:  # launches tell of it; a digest needs none of it
            log.warning("not prepared", endpoint=endpoint.name, error=str(error))
        await self._resolver.run(endpoint_key, target)

    async def _launch(self, endpoint_key: str, instance_id: str) -> None:
        began_s = self._clock()
        instance = self._store.update(
            Instance,
            instance_id,
            lambda i: replace(i, state=InstanceState.LAUNCHING, launched_s=began_s, failure=""),
        )
        try:
            endpoint = self._store.require(Endpoint, endpoint_key).document
            launched = await self._engine.launch(endpoint, instance)
        except ZeropullError as error:
            self._refused(instance_id, error)
            return
        except Exception as error:
            log.error("an error that nobody foresaw", error=str(error), exc_info=error)
            self._refused(instance_id, Unavailable(f"{type(error).__name__}: {error}"))
            return
        now_s = self._clock()

        def running(document: Instance) -> Instance:
            if document.state is not InstanceState.LAUNCHING:
                return document  # told to leave meanwhile
            return replace(
                document,
                state=InstanceState.RUNNING,
                running_s=now_s,
                address=launched.address,
                accelerators=launched.accelerators,
                volumes=launched.volumes,
                next_attempt_s=None,
            )

        self._store.update(Instance, instance_id, running)
        self._refusals.pop(instance_id, None)
        log.info("instance running", instance_id=instance_id, seconds=round(now_s - began_s, 3))

    def _refused(self, instance_id: str, error: ZeropullError) -> None:
        """Try again, with backoff, whatever the error is: a plan decides when to give up."""
        self._refusals[instance_id] = self._refusals.get(instance_id, 0) + 1
        delay_s = self._settings.backoff.after(self._refusals[instance_id])
        now_s = self._clock()

        def waiting(document: Instance) -> Instance:
            if document.state is not InstanceState.LAUNCHING:
                return document
            return replace(
                document,
                state=InstanceState.WANTED,
                next_attempt_s=now_s + delay_s,
                failure=error.reason,
            )

        self._store.update(Instance, instance_id, waiting)
        kind = "no capacity" if isinstance(error, NoCapacity) else "launch failed"
        log.warning(kind, instance_id=instance_id, reason=error.reason, retry_in_s=delay_s)

    async def _terminate(self, instance_id: str) -> None:
        try:
            await self._engine.terminate(instance_id)
        except Exception as error:
            text = f"it cannot be ended yet: {error}"
            self._store.update(Instance, instance_id, lambda i: replace(i, failure=text))
            raise
        now_s = self._clock()
        with self._store.transaction():
            for stored in self._store.select(CopyRecord, instance_id=instance_id):
                copy_id = stored.document.copy_id
                self._store.delete(CopyRecord, copy_id)
                timeline = self._store.get(TimelineRecord, copy_id)
                if timeline is not None:
                    self._store.put(ended(timeline.document, now_s))
            self._store.delete(Instance, instance_id)
        self._refusals.pop(instance_id, None)
        log.info("instance gone", instance_id=instance_id)
