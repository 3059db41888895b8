"""Runs the slow effects of plans: at most one per target, its outcome written back to the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from zeropull.controlapi.exchange import Exchange
from zeropull.errors import NoCapacity, Unavailable, ZeropullError
from zeropull.oci.images import ResolvedImage
from zeropull.providers.protocol import LaunchRequest, MachineShape, Provider, Volume
from zeropull.reconcilers import failure_reasons
from zeropull.reconcilers.components.images import resolve_version
from zeropull.reconcilers.observing import ended
from zeropull.reconcilers.plan import Action, Effect
from zeropull.resources.endpoints import DeployedImage, Deployment, Endpoint
from zeropull.resources.instances import (
    AttachedVolume,
    CopyRecord,
    Instance,
    InstanceState,
    TimelineRecord,
)
from zeropull.resources.settings import EndpointSettings
from zeropull.statestore import Store
from zeropull.tasks import TaskSet
from zeropull.telemetry import get_logger

MAX_EFFECTS = 1000  # at the same time
RESOLVE_ATTEMPTS = 3  # of an unreachable registry, until the deployment fails

log = get_logger(__name__)

Resolve = Callable[[str], Awaitable[ResolvedImage]]


class Effects:
    """Launches, terminations and resolutions in progress. Entered = ready, left = all cancelled."""

    def __init__(
        self,
        store: Store,
        exchange: Exchange,
        provider: Provider,
        *,
        resolve: Resolve,
        shape: Callable[[str], MachineShape],
        volumes: Callable[[Instance], tuple[Volume, ...]],
        prepare: Callable[[Endpoint], Awaitable[None]],
        settings: EndpointSettings,
        node_disk_bytes: int | None,
        clock: Callable[[], float],
        on_done: Callable[[], None],
    ) -> None:
        self._store = store
        self._exchange = exchange
        self._provider = provider
        self._resolve = _foreseen(resolve)
        self._shape = shape
        self._volumes = volumes
        self._prepare = prepare
        self._settings = settings
        self._node_disk_bytes = node_disk_bytes
        self._clock = clock
        self._on_done = on_done
        self._running = TaskSet[str, None]("effects", limit=MAX_EFFECTS, on_end=self._finished)
        self._effects: dict[str, Effect] = {}  # of what runs
        self._refusals: dict[str, int] = {}
        self.resolve_failures: dict[str, str] = {}

    async def close(self) -> None:
        """Cancel everything and wait; the next start finds in the store what was under way."""
        await self._running.close()

    def start(self, endpoint_key: str, action: Action) -> None:
        """Begin the action unless it runs; a termination first cancels a launch of its target.
        When too many effects run, nothing happens: the next round asks again."""
        running = self._running.get(action.target)
        if running is not None:
            is_launch = self._effects[action.target] is Effect.LAUNCH
            if action.effect is Effect.TERMINATE and is_launch:
                running.cancel()
            return
        if self._running.is_full:
            log.warning("too many effects at once", effect=action.effect, target=action.target)
            return
        match action.effect:
            case Effect.RESOLVE:
                work = self._resolve_deployment(endpoint_key, action.target)
            case Effect.RESOLVE_COMPONENT:
                work = self._resolve_component(endpoint_key, action.target)
            case Effect.LAUNCH:
                work = self._launch(endpoint_key, action.target)
            case Effect.TERMINATE:
                work = self._terminate(action.target)
        self._effects[action.target] = action.effect
        self._running.start(action.target, work)

    def _finished(self, target: str, error: BaseException | None) -> None:
        effect = self._effects.pop(target)
        if error is not None:
            log.error("effect failed", effect=effect, target=target, error=str(error))
            return  # the next round tries again: at once would be without a pause
        self._on_done()

    # ------------------------------------------------------------------------------------ launching

    async def _launch(self, endpoint_key: str, instance_id: str) -> None:
        began_s = self._clock()
        instance = self._store.update(
            Instance,
            instance_id,
            lambda i: replace(i, state=InstanceState.LAUNCHING, launched_s=began_s, failure=""),
        )
        volumes = self._volumes(instance)
        request = LaunchRequest(
            instance_id=instance_id,
            shape=self._shape(instance.instance_type),
            node_token=instance.node_token,
            volumes=volumes,
            disk_bytes=self._node_disk_bytes,
            labels={
                "account": instance.account,
                "endpoint": instance.endpoint,
                "variant": instance.variant,
            },
        )
        try:
            await self._prepare(self._store.require(Endpoint, endpoint_key).document)
            provided = await self._provider.launch(request)
        except Exception as error:  # tried again, with backoff, whatever it is
            self._refused(instance_id, _as_ours(error))
            return
        attached = tuple(
            AttachedVolume(v.generation, provided.volumes[v.generation], v.index_digest)
            for v in volumes
            if v.generation in provided.volumes
        )
        now_s = self._clock()

        def running(document: Instance) -> Instance:
            if document.state is not InstanceState.LAUNCHING:
                return document  # told to leave meanwhile
            return replace(
                document,
                state=InstanceState.RUNNING,
                running_s=now_s,
                address=provided.address,
                accelerators=provided.accelerators,
                volumes=attached,
                next_attempt_s=None,
            )

        self._store.update(Instance, instance_id, running)
        self._refusals.pop(instance_id, None)
        log.info("instance running", instance_id=instance_id, seconds=round(now_s - began_s, 3))

    def _refused(self, instance_id: str, error: ZeropullError) -> None:
        refusals = self._refusals.get(instance_id, 0) + 1
        self._refusals[instance_id] = refusals
        delay_s = self._settings.backoff.after(refusals)
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
        await self._provider.terminate(instance_id)
        now_s = self._clock()
        with self._store.transaction():
            for stored in self._store.select(CopyRecord, instance_id=instance_id):
                copy_id = stored.document.copy_id
                self._store.delete(CopyRecord, copy_id)
                timeline = self._store.get(TimelineRecord, copy_id)
                if timeline is not None:
                    self._store.put(ended(timeline.document, now_s))
            self._store.delete(Instance, instance_id)
        self._exchange.forget_node(instance_id)
        self._refusals.pop(instance_id, None)
        log.info("instance gone", instance_id=instance_id)

    # ------------------------------------------------------------------------------------ resolving

    async def _resolve_deployment(self, endpoint_key: str, deployment_id: str) -> None:
        deployment = self._deployment(endpoint_key, deployment_id)
        if deployment is None:
            return
        resolved: dict[str, DeployedImage] = {
            i.reference: i for v in deployment.variants for i in v.images
        }
        for variant in deployment.variants:
            for container in variant.containers:
                if container.image in resolved:
                    continue
                try:
                    image = await self._resolve_once(container.image)
                except ZeropullError as error:
                    reason = failure_reasons.image_failure(variant.name, error.reason)
                    self.resolve_failures[deployment_id] = reason
                    log.warning("image not resolved", image=container.image, reason=error.reason)
                    return
                resolved[container.image] = DeployedImage(
                    container.image, image.manifest_digest, self._clock()
                )
                log.info(
                    "image resolved", image=container.image, manifest_digest=image.manifest_digest
                )
        with self._store.transaction():
            if self._deployment(endpoint_key, deployment_id) is not None:
                self._store.update(
                    Endpoint, endpoint_key, lambda e: _with_images(e, deployment_id, resolved)
                )

    async def _resolve_component(self, endpoint_key: str, version_id: str) -> None:
        # Its registry and its model store may be new to nodes that run already.
        await self._prepare(self._store.require(Endpoint, endpoint_key).document)
        failure = await resolve_version(
            self._store,
            version_id,
            self._resolve,
            backoff=self._settings.backoff,
            clock=self._clock,
        )
        if failure is not None:
            self.resolve_failures[version_id] = failure

    async def _resolve_once(self, reference: str) -> ResolvedImage:
        for failures in range(1, RESOLVE_ATTEMPTS):
            try:
                return await self._resolve(reference)
            except Unavailable as error:
                delay_s = self._settings.backoff.after(failures)
                log.warning(
                    "registry unavailable", image=reference, reason=error.reason, retry_in_s=delay_s
                )
                await asyncio.sleep(delay_s)
        return await self._resolve(reference)

    def _deployment(self, endpoint_key: str, deployment_id: str) -> Deployment | None:
        stored = self._store.get(Endpoint, endpoint_key)
        if stored is None:
            return None
        both = (stored.document.current, stored.document.pending)
        return next((d for d in both if d and d.deployment_id == deployment_id), None)


def _foreseen(resolve: Resolve) -> Resolve:
    """With nothing but our own errors: a deployment fails by them, and says why."""

    async def resolve_or_fail(reference: str) -> ResolvedImage:
        try:
            return await resolve(reference)
        except Exception as error:
            raise _as_ours(error) from error

    return resolve_or_fail


def _as_ours(error: Exception) -> ZeropullError:
    if isinstance(error, ZeropullError):
        return error
    log.error("an error that nobody foresaw", error=str(error), exc_info=error)
    return Unavailable(f"{type(error).__name__}: {error}")


def _with_images(
    endpoint: Endpoint, deployment_id: str, resolved: dict[str, DeployedImage]
) -> Endpoint:
    def filled(deployment: Deployment | None) -> Deployment | None:
        if deployment is None or deployment.deployment_id != deployment_id:
            return deployment
        variants = tuple(
            replace(
                v, images=tuple(resolved[i] for i in dict.fromkeys(c.image for c in v.containers))
            )
            for v in deployment.variants
        )
        return replace(deployment, variants=variants)

    return replace(endpoint, current=filled(endpoint.current), pending=filled(endpoint.pending))
