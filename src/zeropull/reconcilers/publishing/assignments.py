"""Builds what a node should do from its instance, its copies and the deployment they belong to.

Environment: SageMaker's documented variables, then the container definition's own map, which wins.
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
from zeropull.reconcilers.endpoint_view import View
from zeropull.resources.endpoints import Variant
from zeropull.resources.instances import CopyIntent, CopyRecord, Instance
from zeropull.resources.models import ContainerSpec, ModelSource

IMAGE_PATH_TAG = "zeropull:image-path"
SAFE_PORT_RANGE = "23000-23999"
FIRST_PORT = 8080


def build_assignment(
    view: View,
    instance: Instance,
    *,
    region: str,
    shape: MachineShape | None,
    simulate_accelerators: bool,
    image_path: ImagePath,
    waits: Iterable[str],
    registry_access: Callable[[str], RegistryAccess | None],
    buckets: Mapping[str, StoreAccess],
) -> NodeAssignment:
    """The node's whole assignment; `waits`: manifest digests that another node is pulling.

    `registry_access` takes an image reference.
    """
    variant = _variant_of(view, instance)
    waiting = frozenset(waits)
    images: dict[str, ImageAssignment] = {}
    copies = []
    for copy in sorted(view.copies_on(instance), key=lambda c: (c.container, c.copy_id)):
        if variant is None or copy.container >= len(variant.containers):
            # Its deployment is no longer known (a rolled-back update): it can only be stopped.
            copies.append(CopyAssignment(copy.copy_id, copy.manifest_digest, desired="stop"))
            continue
        container = variant.containers[copy.container]
        images[copy.manifest_digest] = ImageAssignment(
            reference=container.image,
            manifest_digest=copy.manifest_digest,
            path=image_path,
            registry=registry_access(container.image),
            wait_for_generation=(image_path is ImagePath.AUTO and copy.manifest_digest in waiting),
        )
        copies.append(
            _copy(copy, container, variant, instance, region, shape, simulate_accelerators, buckets)
        )
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
    container: ContainerSpec,
    variant: Variant,
    instance: Instance,
    region: str,
    shape: MachineShape | None,
    simulate_accelerators: bool,
    buckets: Mapping[str, StoreAccess],
) -> CopyAssignment:
    return CopyAssignment(
        copy_id=copy.copy_id,
        image=copy.manifest_digest,
        desired="stop" if copy.intent is CopyIntent.STOP else "run",
        environment=environment_of(container, region),
        hostname=container.hostname,
        artifacts=tuple(artifact_of(s, buckets) for s in container.sources),
        limits=_limits(instance, shape, simulate_accelerators),
        model_download_timeout_s=variant.spec.model_download_timeout_s,
        health_timeout_s=variant.spec.health_timeout_s,
        component=copy.component,
        container_name=container.name,
    )


def _limits(
    instance: Instance, shape: MachineShape | None, simulate_accelerators: bool
) -> ResourceLimits:
    if shape is None:
        return ResourceLimits(accelerators=instance.accelerators)
    return ResourceLimits(
        cpu_cores=float(shape.vcpus),
        memory_bytes=shape.memory_bytes,
        accelerators=instance.accelerators,
        simulated_accelerators=shape.accelerators if simulate_accelerators else 0,
    )


def environment_of(container: ContainerSpec, region: str) -> dict[str, str]:
    """SageMaker's variables and the container's own."""
    return {
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "SAGEMAKER_BIND_TO_PORT": str(FIRST_PORT),
        "SAGEMAKER_SAFE_PORT_RANGE": SAFE_PORT_RANGE,
        **container.environment,
    }


def artifact_of(source: ModelSource, buckets: Mapping[str, StoreAccess]) -> ModelArtifact:
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


def _variant_of(view: View, instance: Instance) -> Variant | None:
    for deployment in (view.endpoint.current, view.endpoint.pending):
        if deployment is not None and deployment.deployment_id == instance.deployment_id:
            return deployment.variant(instance.variant)
    return None
