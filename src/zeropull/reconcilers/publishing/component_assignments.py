"""Builds what a node of a component endpoint should do: several images, several copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from zeropull.controlapi.messages import (
    CopyAssignment,
    ImageAssignment,
    ImagePath,
    NodeAssignment,
    RegistryAccess,
    ResourceLimits,
    StoreAccess,
    VolumeMount,
)
from zeropull.reconcilers.components.slots import cached_images
from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.publishing.assignments import artifact_of, environment_of
from zeropull.resources.components import ComponentSpec, ComponentVersion
from zeropull.resources.instances import CopyIntent, CopyRecord, Instance


def build_component_assignment(
    view: View,
    instance: Instance,
    *,
    region: str,
    simulate_accelerators: bool,
    image_path: ImagePath,
    waits: Iterable[str],
    registry_access: Callable[[str], RegistryAccess | None],
    buckets: Mapping[str, StoreAccess],
) -> NodeAssignment:
    """The node's whole assignment; `waits`: manifest digests that another node is pulling.

    `registry_access` takes an image reference.
    """
    components = {c.name: c for c in view.components}
    waiting = frozenset(waits)
    images: dict[str, ImageAssignment] = {}
    cached = cached_images(view.components)
    copies = []

    def want(reference: str, digest: str) -> None:
        images[digest] = ImageAssignment(
            reference=reference,
            manifest_digest=digest,
            path=image_path,
            registry=registry_access(reference),
            wait_for_generation=image_path is ImagePath.AUTO and digest in waiting,
            keep=digest in cached,
        )

    for copy in sorted(view.copies_on(instance), key=lambda c: c.copy_id):
        component = components.get(copy.component or "")
        version = component.version(copy.deployment_id) if component else None
        if version is None:
            # Its version is no longer known: it can only be stopped.
            copies.append(CopyAssignment(copy.copy_id, copy.manifest_digest, desired="stop"))
            continue
        want(version.spec.container.image, copy.manifest_digest)
        copies.append(_copy(copy, version, instance, region, simulate_accelerators, buckets))
    # What a copy may come back to stays, though none of it runs now: without a name in the
    # assignment the node would let go of the image. What a node holds that has not reported yet,
    # since this control plane is younger, nobody knows: it may be all.
    held = view.cached.get(instance.instance_id, cached.keys())
    for digest, reference in cached.items():
        if digest in held and digest not in images:
            want(reference, digest)
    return NodeAssignment(
        version=0,
        instance_id=instance.instance_id,
        endpoint=instance.endpoint,
        variant=instance.variant,
        volumes=tuple(
            VolumeMount(v.generation, v.path, v.index_digest)
            for v in sorted(instance.volumes, key=lambda v: -v.generation)
        ),
        images=tuple(images[d] for d in sorted(images)),
        copies=tuple(copies),
    )


def _copy(
    copy: CopyRecord,
    version: ComponentVersion,
    instance: Instance,
    region: str,
    simulate_accelerators: bool,
    buckets: Mapping[str, StoreAccess],
) -> CopyAssignment:
    spec = version.spec
    return CopyAssignment(
        copy_id=copy.copy_id,
        image=copy.manifest_digest,
        desired="stop" if copy.intent is CopyIntent.STOP else "run",
        environment=environment_of(spec.container, region),
        artifacts=tuple(artifact_of(source, buckets) for source in spec.container.sources),
        limits=_limits(copy, spec, instance, simulate_accelerators),
        model_download_timeout_s=spec.model_download_timeout_s,
        health_timeout_s=spec.health_timeout_s,
        enable_caching=spec.enable_caching,
        component=copy.component,
        container_name=spec.container.name,
    )


def _limits(
    copy: CopyRecord, spec: ComponentSpec, instance: Instance, simulate_accelerators: bool
) -> ResourceLimits:
    """Cores and the memory minimum are reservations; accelerators are the copy's own."""
    given = tuple(
        instance.accelerators[index]
        for index in copy.accelerators
        if index < len(instance.accelerators)
    )
    return ResourceLimits(
        memory_bytes=spec.max_memory_bytes,
        accelerators=given,
        simulated_accelerators=len(copy.accelerators) if simulate_accelerators else 0,
    )
