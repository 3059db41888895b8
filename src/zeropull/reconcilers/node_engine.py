"""The engine of instances with a node agent: launched by a provider, told by assignments, heard
through reports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import CopyState, ImagePath, RegistryAccess, StoreAccess
from zeropull.errors import ZeropullError
from zeropull.providers.protocol import LaunchRequest, MachineShape, Provider
from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.engine import Launched, Observed
from zeropull.reconcilers.imagecaches.controller import CacheController
from zeropull.reconcilers.publishing.assignments import IMAGE_PATH_TAG, AssignmentBuilder
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import AttachedVolume, CopyIntent, Instance, InstanceState
from zeropull.resources.settings import Settings
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store


class NodeEngine:
    """`shape` by instance type; it raises InvalidInput for an unknown one. `registry_access` by
    image reference. `open_ways` lets nodes reach the endpoint's registries and model stores."""

    def __init__(
        self,
        store: Store,
        exchange: Exchange,
        provider: Provider,
        caches: CacheController,
        settings: Settings,
        *,
        shape: Callable[[str], MachineShape],
        registry_access: Callable[[str], RegistryAccess | None],
        open_ways: Callable[[Endpoint], Awaitable[None]],
    ) -> None:
        self._store = store
        self._exchange = exchange
        self._provider = provider
        self._caches = caches
        self._settings = settings
        self._shape = shape
        self._open_ways = open_ways
        self._image_paths: dict[str, ImagePath] = {}
        self._builder = AssignmentBuilder(
            region=settings.serve.region,
            simulate_accelerators=settings.fleet.simulate_accelerators,
            registry_access=registry_access,
            buckets=_buckets(settings),
        )

    async def prepare(self, endpoint: Endpoint) -> None:
        await self._open_ways(endpoint)

    async def launch(self, endpoint: Endpoint, instance: Instance) -> Launched:
        await self.prepare(endpoint)
        volumes = self._caches.volumes_for(instance)
        provided = await self._provider.launch(
            LaunchRequest(
                instance_id=instance.instance_id,
                shape=self._shape(instance.instance_type),
                node_token=instance.node_token,
                volumes=volumes,
                disk_bytes=disk_budget(endpoint, instance, self._settings.fleet.node_disk_bytes),
                labels={
                    "account": instance.account,
                    "endpoint": instance.endpoint,
                    "endpoint_uid": endpoint.uid,
                    "variant": instance.variant,
                },
            )
        )
        attached = tuple(
            AttachedVolume(v.generation, provided.volumes[v.generation], v.index_digest)
            for v in volumes
            if v.generation in provided.volumes
        )
        return Launched(provided.address, provided.accelerators, attached)

    async def terminate(self, instance_id: str) -> None:
        await self._provider.terminate(instance_id)
        self._exchange.forget_node(instance_id)
        self._image_paths.pop(instance_id, None)

    async def list_instances(self) -> frozenset[str]:
        return frozenset(p.instance_id for p in await self._provider.list_instances())

    async def heal(self, instance_id: str) -> bool:
        return await self._provider.heal(instance_id)

    def run_copies(self, view: View, now_s: float) -> None:
        known = {d.deployment_id for d in (view.endpoint.current, view.endpoint.pending) if d}
        for instance in view.instances:
            if instance.state is InstanceState.WANTED:
                continue
            if instance.deployment_id not in known and self._goes_on(view, instance, now_s):
                continue
            assignment = self._builder.build(
                view,
                instance,
                shape=self._shape_or_none(instance.instance_type),
                image_path=self._image_path(view.endpoint, instance),
                waits=self._caches.waits_for(instance),
                suspects=self._caches.suspects_of(instance),
            )
            self._exchange.publish_assignment(assignment, now_s)

    def take_changed(self) -> set[str]:
        return self._exchange.take_changed_nodes()

    def heard_s(self, instance_id: str) -> float | None:
        received = self._exchange.nodes.get(instance_id)
        return received.heard_s if received is not None else None

    def observe(self, instance_id: str) -> Observed | None:
        received = self._exchange.nodes.get(instance_id)
        if received is None:
            return None
        report = received.report
        copies = {c.copy_id: c for c in report.copies}
        stopped = {c.copy_id for c in report.copies if c.state is CopyState.STOPPED}
        topic = self._exchange.assignments.get(instance_id)
        told = topic.message if topic else None
        if told is not None and self._exchange.told(
            told, report.assignment_version, report.assignment_epoch
        ):
            # The node has acted on "stop" and no longer knows the copy.
            stopped |= {
                c.copy_id for c in told.copies if c.desired == "stop" and c.copy_id not in copies
            }
        images = frozenset(i.manifest_digest for i in report.images if i.on_node)
        return Observed(received.heard_s, copies, frozenset(stopped), images)

    def _goes_on(self, view: View, instance: Instance, now_s: float) -> bool:
        """What the instance serves stands in no document any more: it goes on as it was told last,
        until it is to stop. False when its assignment is to be built as any other."""
        if not all(c.intent is CopyIntent.STOP for c in view.copies_on(instance)):
            return True
        topic = self._exchange.assignments.get(instance.instance_id)
        if topic is None or topic.message is None:
            return False
        stopped = tuple(replace(c, desired="stop") for c in topic.message.copies)
        self._exchange.publish_assignment(replace(topic.message, copies=stopped), now_s)
        return True

    def _shape_or_none(self, instance_type: str) -> MachineShape | None:
        try:
            return self._shape(instance_type)
        except ZeropullError:
            return None  # a type that the configuration no longer has: it runs without limits

    def _image_path(self, endpoint: Endpoint, instance: Instance) -> ImagePath:
        """The tag's value when the instance was first seen: a later one is for later launches."""
        known = self._image_paths.get(instance.instance_id)
        if known is None:
            stored = self._store.get(ResourceTags, endpoint.arn)
            tags = stored.document.tags if stored else {}
            value = tags.get(IMAGE_PATH_TAG, ImagePath.AUTO.value)
            known = ImagePath(value) if value in list(ImagePath) else ImagePath.AUTO
            self._image_paths[instance.instance_id] = known
        return known


def disk_budget(endpoint: Endpoint, instance: Instance, fleet_bytes: int | None) -> int | None:
    """Bytes of the instance's own disk: the variant's VolumeSizeInGB or `fleet_bytes`, whichever is
    less; None = what the disk has."""
    limits = [] if fleet_bytes is None else [fleet_bytes]
    for deployment in (endpoint.current, endpoint.pending):
        if deployment is not None and deployment.deployment_id == instance.deployment_id:
            variant = deployment.variant(instance.variant)
            if variant is not None and variant.spec.volume_gb is not None:
                limits.append(variant.spec.volume_gb << 30)
    return min(limits, default=None)


def _buckets(settings: Settings) -> dict[str, StoreAccess]:
    return {
        name: StoreAccess(
            endpoint=b.endpoint,
            region=b.region,
            access_key_id=b.access_key_id,
            secret_access_key=b.secret_access_key,
            session_token=b.session_token,
            directory=b.directory,
            etag_is_md5=b.etag_is_md5,
        )
        for name, b in settings.buckets.items()
    }
