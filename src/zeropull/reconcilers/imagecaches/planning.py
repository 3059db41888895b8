"""Decides how the image cache of one endpoint comes into being and keeps up: pure.

The first pull of an image feeds its cache: one node pulls, the others of the deployment wait for
the generation. A cache that cannot be built holds nobody up: then every node pulls for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from zeropull.backoff import Backoff
from zeropull.resources.image_caches import GenerationRecord, GenerationState, ImageCacheRecord
from zeropull.resources.instances import Instance, InstanceState

RETRY = Backoff(first_s=60.0, limit_s=900.0)  # after a build that found no room
_MAY_PULL = (InstanceState.RUNNING, InstanceState.LAUNCHING, InstanceState.WANTED)


@dataclass(frozen=True, slots=True)
class CacheView:
    """`wanted`: reference by manifest digest, over all deployments of the endpoint.

    `uses`, `complete` and `failed`: manifest digests by instance ID. `dropped`: chain IDs of the
    newest generation that a node found damaged. `before`: pullers of the last round. `kept`:
    manifest digests that nodes keep for copies that come back.
    """

    record: ImageCacheRecord
    wanted: Mapping[str, str]
    now_s: float
    instances: tuple[Instance, ...] = ()
    uses: Mapping[str, frozenset[str]] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    complete: Mapping[str, frozenset[str]] = field(default_factory=dict)
    failed: Mapping[str, frozenset[str]] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    bad_layers: frozenset[str] = frozenset()  # the same of whatever generation
    before: Mapping[str, str] = field(default_factory=dict)
    is_building: bool = False
    unattachable: frozenset[str] = frozenset()  # instances that did not take a generation


@dataclass(frozen=True, slots=True)
class Build:
    """One generation to build: `images` by digest with their references, `sources` the nodes that
    may have layers of them, the best first."""

    images: Mapping[str, str]
    sources: tuple[str, ...]
    reason: str
    bad_layers: frozenset[str] = frozenset()  # not to be taken from an older generation


@dataclass(frozen=True, slots=True)
class CachePlan:
    """`waits`: manifest digests by instance ID; `attach`: instances that need the newest
    generation; `leaving`: generations that nothing on an instance uses any more, by instance ID;
    `remove`: generations without a user."""

    record: ImageCacheRecord
    pullers: Mapping[str, str]
    waits: Mapping[str, frozenset[str]]
    attach: tuple[str, ...] = ()
    leaving: Mapping[str, frozenset[int]] = field(default_factory=dict)
    build: Build | None = None
    remove: tuple[int, ...] = ()


def plan_cache(view: CacheView) -> CachePlan:
    """What to build, attach and remove now, and who pulls while others wait."""
    record = _without_damaged(view)
    newest = record.newest_published
    covered = frozenset(newest.images) if newest else frozenset()
    missing = [digest for digest in sorted(view.wanted) if digest not in covered]
    refused = _refused(record, view.wanted)
    hopeless = frozenset(refused.images) if refused else frozenset[str]()
    postponed = hopeless if refused and view.now_s < refused.retry_s else frozenset[str]()
    pullers = {}
    for digest in missing:
        puller = _puller(view, digest)
        if puller is not None:
            pullers[digest] = puller
    waits = {}
    for instance in view.instances:
        held = frozenset(
            digest
            for digest in missing
            if digest in view.uses.get(instance.instance_id, frozenset())
            and digest not in view.complete.get(instance.instance_id, frozenset())
            and pullers.get(digest, instance.instance_id) != instance.instance_id
            and digest not in hopeless
        ) | _about_to_be_attached(view, instance, newest)
        if held:
            waits[instance.instance_id] = held
    return CachePlan(
        record=record,
        pullers=pullers,
        waits=waits,
        attach=_to_attach(view, newest),
        leaving=_leaving(view, record, newest),
        build=_build(view, missing, covered, postponed),
        remove=_unused(view, record),
    )


def is_damage_of(newest: GenerationRecord, instance: Instance) -> bool:
    """Bad layers that the instance tells of are this generation's: it never had another one.

    A node remembers what it dropped. One that has got the generation in place of a damaged one
    would have it condemned as well, and so each that replaces it.
    """
    generations = {volume.generation for volume in instance.volumes}
    return generations == {newest.number} and instance.created_s > newest.created_s


def _without_damaged(view: CacheView) -> ImageCacheRecord:
    newest = view.record.newest_published
    if newest is None or not view.dropped:
        return view.record
    message = f"{len(view.dropped)} damaged layer(s), first {min(view.dropped)}: built again"
    return with_generation(
        view.record, replace(newest, state=GenerationState.CONDEMNED, message=message)
    )


def _puller(view: CacheView, digest: str) -> str | None:
    candidates = [
        i
        for i in view.instances
        if i.state in _MAY_PULL
        and digest in view.uses.get(i.instance_id, frozenset())
        and digest not in view.failed.get(i.instance_id, frozenset())
    ]
    if not candidates:
        return None
    order = sorted(
        candidates,
        key=lambda i: (
            digest not in view.complete.get(i.instance_id, frozenset()),
            view.before.get(digest) != i.instance_id or i.state is InstanceState.WANTED,
            _MAY_PULL.index(i.state),
            i.created_s,
            i.instance_id,
        ),
    )
    return order[0].instance_id


def _refused(record: ImageCacheRecord, wanted: Mapping[str, str]) -> GenerationRecord | None:
    """The last build, if it was refused, or tries again what was, and its images are still wanted:
    nobody waits for it."""
    last = record.generations[-1] if record.generations else None
    if last is None or not last.refusals or not frozenset(wanted) >= frozenset(last.images):
        return None
    return last


def plan_retry(refused: GenerationRecord, now_s: float, message: str) -> GenerationRecord:
    """The record of a build that found no room: the more often in a row, the later the next."""
    refusals = refused.refusals + 1
    delay_s = RETRY.after(refusals)
    return replace(
        refused,
        state=GenerationState.REFUSED,
        refusals=refusals,
        retry_s=now_s + delay_s,
        message=f"{message}; tried again after {delay_s:g} s",
    )


def begin_build(
    record: ImageCacheRecord, images: Mapping[str, str], now_s: float
) -> tuple[ImageCacheRecord, GenerationRecord]:
    """The record with a new generation that is being built instead of those that came to nothing,
    and that generation. It keeps the refusals of the same images, and their message."""
    refused = _refused(record, images)
    if refused is not None and set(refused.images) != set(images):
        refused = None
    building = GenerationRecord(
        number=record.next_generation,
        state=GenerationState.BUILDING,
        created_s=now_s,
        images=tuple(sorted(images)),
        message=refused.message if refused else "",
        refusals=refused.refusals if refused else 0,
    )
    nothing = (GenerationState.BUILDING, GenerationState.REFUSED)
    numbers = {g.number for g in record.generations if g.state in nothing}
    return with_generation(without_generations(record, numbers), building), building


def _build(
    view: CacheView, missing: list[str], covered: frozenset[str], postponed: frozenset[str]
) -> Build | None:
    if view.is_building:
        return None
    pulled = frozenset().union(*view.complete.values()) if view.complete else frozenset()
    ready = [d for d in missing if d in pulled and d not in postponed]
    if not ready:
        return None
    images = {d: view.wanted[d] for d in sorted(view.wanted) if d in covered or d in pulled}
    sources = sorted(
        (i for i, done in view.complete.items() if done & frozenset(images)),
        key=lambda i: (-len(view.complete[i] & frozenset(ready)), i),
    )
    reason = f"{len(ready)} image(s) that no generation holds"
    return Build(images, tuple(sources), reason, view.bad_layers)


def _to_attach(view: CacheView, newest: GenerationRecord | None) -> tuple[str, ...]:
    """Running nodes that still need an image which only the newest generation has."""
    if newest is None:
        return ()
    return tuple(
        i.instance_id
        for i in view.instances
        if i.state is InstanceState.RUNNING
        and i.instance_id not in view.unattachable
        and newest.number not in {v.generation for v in i.volumes}
        and (
            view.uses.get(i.instance_id, frozenset())
            & frozenset(newest.images) - view.complete.get(i.instance_id, frozenset())
        )
    )


def _leaving(
    view: CacheView, record: ImageCacheRecord, newest: GenerationRecord | None
) -> dict[str, frozenset[int]]:
    """Older generations of nodes that have the newest, when no copy there may use them.

    A copy may use each generation that holds its image: which one it was started from is not known.
    """
    images = {g.number: frozenset(g.images) for g in record.generations}
    leaving: dict[str, frozenset[int]] = {}
    for instance in view.instances:
        attached = {volume.generation for volume in instance.volumes}
        if newest is None or newest.number not in attached:
            continue
        used = view.uses.get(instance.instance_id, frozenset()) | view.kept
        old = attached - {newest.number}
        unused = frozenset(n for n in old if not used & images.get(n, frozenset()))
        if unused:
            leaving[instance.instance_id] = unused
    return leaving


def _about_to_be_attached(
    view: CacheView, instance: Instance, newest: GenerationRecord | None
) -> frozenset[str]:
    """Published already, but not yet attached here: to pull now would read the layers again."""
    if (
        newest is None
        or instance.state not in _MAY_PULL
        or instance.instance_id in view.unattachable
        or newest.number in {v.generation for v in instance.volumes}
    ):
        return frozenset()
    uses = view.uses.get(instance.instance_id, frozenset()) & frozenset(newest.images)
    return uses - view.complete.get(instance.instance_id, frozenset())


def _unused(view: CacheView, record: ImageCacheRecord) -> tuple[int, ...]:
    newest = record.newest_published
    used = {v.generation for i in view.instances for v in i.volumes}
    return tuple(
        g.number
        for g in record.generations
        if g.state in (GenerationState.PUBLISHED, GenerationState.CONDEMNED)
        and (newest is None or g.number != newest.number)
        and g.number not in used
        # A damaged one still gives its good layers to the one that replaces it.
        and newest is not None
    )


def with_generation(record: ImageCacheRecord, generation: GenerationRecord) -> ImageCacheRecord:
    """The record with this generation put in or replaced."""
    others = [g for g in record.generations if g.number != generation.number]
    generations = tuple(sorted((*others, generation), key=lambda g: g.number))
    return replace(
        record,
        generations=generations,
        next_generation=max(record.next_generation, generation.number + 1),
    )


def without_generations(record: ImageCacheRecord, numbers: set[int]) -> ImageCacheRecord:
    """The record without these generations."""
    kept = tuple(g for g in record.generations if g.number not in numbers)
    return replace(record, generations=kept)
