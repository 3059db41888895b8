"""Who pulls, who waits, and when a generation is built, attached and removed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from zeropull.reconcilers.imagecaches.planning import (
    CacheView,
    begin_build,
    is_damage_of,
    plan_cache,
    plan_retry,
    with_generation,
)
from zeropull.resources.image_caches import (
    CacheState,
    GenerationRecord,
    GenerationState,
    ImageCacheRecord,
)
from zeropull.resources.instances import AttachedVolume, Instance, InstanceState

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
RECORD = ImageCacheRecord("u", "0", "demo", CacheState.ACTIVE, 0.0)


def instance(name: str, created_s: float = 0.0, generation: int | None = None) -> Instance:
    volumes = (AttachedVolume(generation, "/v", "d"),) if generation else ()
    return Instance(
        name, "0", "u", "demo", "main", "ml.g5.xlarge", "d", InstanceState.RUNNING, "t", created_s,
        volumes=volumes,
    )  # fmt: skip


def published(number: int, *images: str) -> GenerationRecord:
    return GenerationRecord(number, GenerationState.PUBLISHED, 0.0, images, "digest", "/g")


def view(*instances: Instance, record: ImageCacheRecord = RECORD, **changes: Any) -> CacheView:
    uses = {i.instance_id: frozenset({ONE}) for i in instances}
    return replace(CacheView(record, {ONE: "r:1"}, 0.0, instances, uses), **changes)


def test_the_oldest_instance_pulls_and_the_others_wait() -> None:
    plan = plan_cache(view(instance("b", 1.0), instance("a", 0.0)))
    assert plan.pullers == {ONE: "a"}
    assert plan.waits == {"b": frozenset({ONE})}
    assert plan.build is None


def test_the_puller_stays_the_same_while_it_lives() -> None:
    plan = plan_cache(view(instance("a", 0.0), instance("b", 1.0), before={ONE: "b"}))
    assert plan.pullers == {ONE: "b"}


def test_another_instance_pulls_when_the_puller_has_died() -> None:
    plan = plan_cache(view(instance("b", 1.0), before={ONE: "a"}))
    assert plan.pullers == {ONE: "b"}
    assert not plan.waits


def test_an_instance_without_capacity_does_not_hold_others_up() -> None:
    starved = replace(instance("a", 0.0), state=InstanceState.WANTED)
    plan = plan_cache(view(starved, instance("b", 1.0)))
    assert plan.pullers == {ONE: "b"}


def test_a_complete_pull_is_built_into_a_generation() -> None:
    plan = plan_cache(view(instance("a"), complete={"a": frozenset({ONE})}))
    assert plan.build is not None
    assert plan.build.images == {ONE: "r:1"}
    assert plan.build.sources == ("a",)


def test_only_one_build_runs_at_a_time() -> None:
    plan = plan_cache(view(instance("a"), complete={"a": frozenset({ONE})}, is_building=True))
    assert plan.build is None


def test_a_published_generation_is_attached_to_those_who_waited() -> None:
    record = with_generation(RECORD, published(1, ONE))
    plan = plan_cache(
        view(instance("a"), instance("b", 1.0), record=record, complete={"a": frozenset({ONE})})
    )
    assert plan.attach == ("b",)
    assert plan.waits == {"b": frozenset({ONE})}, "until it is attached"


def test_an_instance_that_does_not_take_the_generation_pulls_for_itself() -> None:
    record = with_generation(RECORD, published(1, ONE))
    plan = plan_cache(view(instance("b"), record=record, unattachable=frozenset({"b"})))
    assert plan.attach == ()
    assert not plan.waits


def test_nobody_waits_for_a_generation_that_was_refused() -> None:
    building = GenerationRecord(1, GenerationState.BUILDING, 0.0, (ONE,))
    refused = plan_retry(building, 0.0, "10 of 5 bytes")
    seen = view(
        instance("a"),
        instance("b", 1.0),
        record=with_generation(RECORD, refused),
        complete={"a": frozenset({ONE})},
    )
    assert not plan_cache(seen).waits
    assert plan_cache(seen).build is None
    retried = replace(seen, now_s=refused.retry_s)
    assert plan_cache(retried).build is not None
    record, again = begin_build(retried.record, {ONE: "r:1"}, retried.now_s)
    assert record.generations == (again,), "the refused one is replaced"
    assert not plan_cache(replace(retried, record=record, is_building=True)).waits
    fresh, _ = begin_build(retried.record, {ONE: "r:1", TWO: "r:2"}, 0.0)
    other = replace(retried, record=fresh, wanted={ONE: "r:1", TWO: "r:2"}, is_building=True)
    assert plan_cache(other).waits, "another build may find room"


def test_a_new_image_makes_a_new_generation_that_keeps_the_old_one() -> None:
    record = with_generation(RECORD, published(1, ONE))
    plan = plan_cache(
        view(
            instance("a"),
            record=record,
            wanted={ONE: "r:1", TWO: "r:2"},
            uses={"a": frozenset({TWO})},
            complete={"a": frozenset({TWO})},
        )
    )
    assert plan.build is not None
    assert set(plan.build.images) == {ONE, TWO}


def test_an_old_generation_goes_only_after_its_last_user() -> None:
    record = with_generation(with_generation(RECORD, published(1, ONE)), published(2, ONE))
    assert plan_cache(view(instance("a", generation=1), record=record)).remove == ()
    assert plan_cache(view(instance("a", generation=2), record=record)).remove == (1,)


def test_damage_of_an_older_generation_does_not_condemn_the_one_that_replaces_it() -> None:
    newest = replace(published(2, ONE), created_s=5.0)
    assert is_damage_of(newest, instance("launched with it", 6.0, 2))
    assert not is_damage_of(newest, instance("another one", 6.0, 1))
    has_both = instance("got it later", 4.0, 2)
    both = (*instance("", generation=1).volumes, *has_both.volumes)
    assert not is_damage_of(newest, replace(has_both, created_s=6.0, volumes=both))
    assert not is_damage_of(newest, has_both)  # the older one was taken away since


def test_a_damaged_generation_is_condemned_and_built_again_from_good_layers() -> None:
    record = with_generation(RECORD, published(1, ONE))
    plan = plan_cache(
        view(
            instance("a", generation=1),
            record=record,
            dropped=frozenset({"sha256:bad"}),
            bad_layers=frozenset({"sha256:bad"}),
            complete={"a": frozenset({ONE})},
        )
    )
    assert plan.record.newest_published is None
    assert plan.build is not None
    assert plan.build.bad_layers == {"sha256:bad"}
    assert plan.remove == ()


def test_an_older_generation_leaves_when_no_copy_uses_its_images() -> None:
    both = replace(
        instance("a"), volumes=(AttachedVolume(1, "/1", "d"), AttachedVolume(2, "/2", "d"))
    )
    record = with_generation(with_generation(RECORD, published(1, ONE)), published(2, ONE, TWO))
    uses = {"a": frozenset({TWO})}
    plan = plan_cache(view(both, record=record, wanted={TWO: "r:2"}, uses=uses))
    assert plan.leaving == {"a": {1}}
    assert plan.remove == (), "it is still attached"


def test_an_older_generation_stays_while_a_copy_may_use_it_or_come_back_to_it() -> None:
    both = replace(
        instance("a"), volumes=(AttachedVolume(1, "/1", "d"), AttachedVolume(2, "/2", "d"))
    )
    record = with_generation(with_generation(RECORD, published(1, ONE)), published(2, ONE, TWO))
    wanted = {ONE: "r:1", TWO: "r:2"}
    assert plan_cache(view(both, record=record, wanted=wanted)).leaving == {}
    uses = {"a": frozenset({TWO})}
    kept = view(both, record=record, wanted=wanted, uses=uses, kept=frozenset({ONE}))
    assert plan_cache(kept).leaving == {}


def test_the_only_generation_of_a_node_stays() -> None:
    record = with_generation(with_generation(RECORD, published(1, ONE)), published(2, TWO))
    plan = plan_cache(
        view(instance("a", generation=1), record=record, uses={"a": frozenset({TWO})})
    )
    assert plan.leaving == {}
