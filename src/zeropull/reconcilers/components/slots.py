"""What instances of a component endpoint have left, as placement sees it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from zeropull.placement.capacity import (
    Requirement,
    Shape,
    Slot,
    Strategy,
    empty_slot,
    schedulable_memory_bytes,
)
from zeropull.placement.placing import CopyRequest
from zeropull.providers.protocol import MachineShape
from zeropull.reconcilers.plan import Draft
from zeropull.resources.components import (
    ComponentSpec,
    ComponentStatus,
    ComponentVersion,
    InferenceComponent,
)
from zeropull.resources.documents import new_copy_id
from zeropull.resources.endpoints import DeployedImage
from zeropull.resources.instances import CopyRecord, Instance

ShapeOf = Callable[[str], Shape | None]


def placing_shape(shape: MachineShape) -> Shape:
    """What copies may use of it. Accelerators are numbered: an instance that is only wanted does
    not know the names of its own yet."""
    return Shape(
        shape.name,
        shape.vcpus * 1000,
        schedulable_memory_bytes(shape.memory_bytes),
        tuple(str(index) for index in range(shape.accelerators)),
    )


def requirement_of(spec: ComponentSpec) -> Requirement:
    return Requirement(spec.cpu_milli, spec.memory_bytes, spec.accelerators)


def request_for(component: str, version: ComponentVersion) -> CopyRequest:
    """One more copy of this version, which has its image."""
    return CopyRequest(
        new_copy_id(),
        component,
        requirement_of(version.spec),
        Strategy(version.spec.strategy),
        wants_of(version),
    )


def wants_of(version: ComponentVersion) -> frozenset[str]:
    """What a node had better hold already: the image's digest, the URLs of the artifacts."""
    digest = {version.image.manifest_digest} if version.image else set()
    return frozenset(digest | {source.url for source in version.spec.container.sources})


def version_of(draft: Draft, copy: CopyRecord) -> ComponentVersion | None:
    component = draft.components.get(copy.component or "")
    return component.version(copy.deployment_id) if component else None


def slots_of(draft: Draft, instances: list[Instance], shape_of: ShapeOf) -> dict[str, Slot]:
    """A slot for each of the instances whose type is known. Copies keep what they reserve until
    nothing is left of them."""
    slots: dict[str, Slot] = {}
    copies: dict[str, list[CopyRecord]] = {}
    for copy in draft.copies.values():
        copies.setdefault(copy.instance_id, []).append(copy)
    for instance in instances:
        shape = shape_of(instance.instance_type)
        if shape is None:
            continue
        slot = empty_slot(instance.instance_id, shape)
        cached = set(draft.view.cached.get(instance.instance_id, ()))
        for copy in copies.get(instance.instance_id, ()):
            version = version_of(draft, copy)
            if version is None or copy.component is None:
                continue
            need = requirement_of(version.spec)
            slot.cpu_milli -= need.cpu_milli
            slot.memory_bytes -= need.memory_bytes
            given = {str(index) for index in copy.accelerators}
            slot.accelerators = [each for each in slot.accelerators if each not in given]
            slot.copies[copy.component] = slot.copies.get(copy.component, 0) + 1
            cached |= wants_of(version)
        slot.cached = frozenset(cached)
        slots[instance.instance_id] = slot
    return slots


def component_images(components: Iterable[InferenceComponent]) -> dict[str, str]:
    """Reference by manifest digest: every image that a copy runs or is about to run."""
    return {image.manifest_digest: image.reference for _, image in _images(components)}


def cached_images(components: Iterable[InferenceComponent]) -> dict[str, str]:
    """Those of them that nodes keep for a copy that comes back: EnableCaching."""
    return {
        image.manifest_digest: image.reference
        for version, image in _images(components)
        if version.spec.enable_caching
    }


def _images(
    components: Iterable[InferenceComponent],
) -> Iterator[tuple[ComponentVersion, DeployedImage]]:
    for component in components:
        if component.status is not ComponentStatus.DELETING:
            for version in component.versions:
                if version.image is not None:
                    yield version, version.image
