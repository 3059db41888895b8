"""Builds what a node should do from its instance, its copies and what they are copies of.

Environment: SageMaker's documented variables, then the container definition's own map, which wins.
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from zeropull.controlapi.messages import (
    CopyAssignment,
    ImageAssignment,
    ImagePath,
    ModelArtifact,
    NodeAssignment,
    RegistryAccess,
    ResourceLimits,
    StoreAccess,
    VolumeMount,
)
from zeropull.providers.protocol import MachineShape
from zeropull.reconcilers.components.slots import cached_images
from zeropull.reconcilers.endpoint_view import View
from zeropull.resources.instances import CopyIntent, CopyRecord, Instance
from zeropull.resources.models import ContainerSpec, ModelSource

IMAGE_PATH_TAG = "zeropull:image-path"
SAFE_PORT_RANGE = "23000-23999"
FIRST_PORT = 8080


@dataclass(frozen=True, slots=True)
class _Source:
    """What a copy runs: a container of its variant, or that of its component's version."""

    container: ContainerSpec
    model_download_timeout_s: float
    health_timeout_s: float
    enable_caching: bool = True
    max_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class AssignmentBuilder:
    """`registry_access` takes an image reference; `buckets` are by name."""

    region: str
    simulate_accelerators: bool
    registry_access: Callable[[str], RegistryAccess | None]
    buckets: Mapping[str, StoreAccess]

    def build(
        self,
        view: View,
        instance: Instance,
        *,
        shape: MachineShape | None,
        image_path: ImagePath,
        waits: Collection[str],
        suspects: Collection[str] = (),
    ) -> NodeAssignment:
        """The node's whole assignment. `waits`: manifest digests that another node is pulling;
        `suspects`: chain IDs of its layers that were damaged when they were collected."""
        # What a copy may come back to stays, though none of it runs now: without a name in the
        # assignment the node would let go of the image. What a node holds that has not reported
        # yet, since this control plane is younger, nobody knows: it may be all.
        cached = cached_images(view.components)
        held = view.cached.get(instance.instance_id, cached.keys())
        wanted = {digest: reference for digest, reference in cached.items() if digest in held}
        copies = []
        for copy in sorted(view.copies_on(instance), key=lambda c: (c.container, c.copy_id)):
            source = _source_of(view, instance, copy)
            if source is None:
                # What it is a copy of is no longer known: it can only be stopped.
                copies.append(CopyAssignment(copy.copy_id, copy.manifest_digest, desired="stop"))
                continue
            wanted[copy.manifest_digest] = source.container.image
            copies.append(self._copy(copy, source, self._limits(copy, source, instance, shape)))
        images = [
            ImageAssignment(
                reference=wanted[digest],
                manifest_digest=digest,
                path=image_path,
                registry=self.registry_access(wanted[digest]),
                wait_for_generation=image_path is ImagePath.AUTO and digest in waits,
                keep=digest in cached or not view.components,
            )
            for digest in sorted(wanted)
        ]
        return NodeAssignment(
            version=0,
            instance_id=instance.instance_id,
            endpoint=instance.endpoint,
            variant=instance.variant,
            volumes=tuple(
                VolumeMount(v.generation, v.path, v.index_digest)
                for v in sorted(instance.volumes, key=lambda v: -v.generation)
                if not v.leaving
            ),
            images=tuple(images),
            copies=tuple(copies),
            suspect_layers=tuple(sorted(suspects)),
        )

    def _copy(self, copy: CopyRecord, source: _Source, limits: ResourceLimits) -> CopyAssignment:
        return CopyAssignment(
            copy_id=copy.copy_id,
            image=copy.manifest_digest,
            desired="stop" if copy.intent is CopyIntent.STOP else "run",
            environment=_environment_of(source.container, self.region),
            hostname=source.container.hostname,
            artifacts=tuple(_artifact_of(s, self.buckets) for s in source.container.sources),
            limits=limits,
            model_download_timeout_s=source.model_download_timeout_s,
            health_timeout_s=source.health_timeout_s,
            enable_caching=source.enable_caching,
            component=copy.component,
            container_name=source.container.name,
        )

    def _limits(
        self, copy: CopyRecord, source: _Source, instance: Instance, shape: MachineShape | None
    ) -> ResourceLimits:
        """A component's copy has accelerators of its own; its cores and its memory minimum are
        reservations, no limits. A variant's copy may use the whole instance."""
        if copy.component is not None:
            given = tuple(
                instance.accelerators[index]
                for index in copy.accelerators
                if index < len(instance.accelerators)
            )
            return ResourceLimits(
                memory_bytes=source.max_memory_bytes,
                accelerators=given,
                simulated_accelerators=len(copy.accelerators) if self.simulate_accelerators else 0,
            )
        if shape is None:
            return ResourceLimits(accelerators=instance.accelerators)
        return ResourceLimits(
            cpu_cores=float(shape.vcpus),
            memory_bytes=shape.memory_bytes,
            accelerators=instance.accelerators,
            simulated_accelerators=shape.accelerators if self.simulate_accelerators else 0,
        )


def _source_of(view: View, instance: Instance, copy: CopyRecord) -> _Source | None:
    if copy.component is not None:
        component = next((c for c in view.components if c.name == copy.component), None)
        version = component.version(copy.deployment_id) if component else None
        if version is None:
            return None
        spec = version.spec
        return _Source(
            spec.container,
            spec.model_download_timeout_s,
            spec.health_timeout_s,
            spec.enable_caching,
            spec.max_memory_bytes,
        )
    for deployment in (view.endpoint.current, view.endpoint.pending):
        if deployment is None or deployment.deployment_id != instance.deployment_id:
            continue
        variant = deployment.variant(instance.variant)
        if variant is not None and copy.container < len(variant.containers):
            return _Source(
                variant.containers[copy.container],
                variant.spec.model_download_timeout_s,
                variant.spec.health_timeout_s,
            )
    return None


def _environment_of(container: ContainerSpec, region: str) -> dict[str, str]:
    """SageMaker's variables and the container's own."""
    return {
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "SAGEMAKER_BIND_TO_PORT": str(FIRST_PORT),
        "SAGEMAKER_SAFE_PORT_RANGE": SAFE_PORT_RANGE,
        **container.environment,
    }


def _artifact_of(source: ModelSource, buckets: Mapping[str, StoreAccess]) -> ModelArtifact:
    """Where the node finds the files, with the bucket's credentials."""
    url = urlsplit(source.url)
    access = buckets.get(url.netloc, StoreAccess()) if url.scheme == "s3" else None
    return ModelArtifact(
        url=source.url,
        kind=source.source_kind,
        compression=source.compression,
        target=source.target,
        etag=source.etag,
        access=access,
    )
