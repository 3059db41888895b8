"""References are resolved with patience, and what cannot be resolved says why."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.layers import image_of, member, tar_of
from tests.unit.reconcilers import component_world
from tests.unit.reconcilers.endpoint_world import IMAGE, deployment, endpoint
from zeropull.errors import NotFound, Unavailable
from zeropull.oci.images import ResolvedImage
from zeropull.reconcilers.resolving import Resolver
from zeropull.resources.components import InferenceComponent
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.settings import EndpointSettings
from zeropull.statestore import Store

RESOLVED, _ = image_of([tar_of(member("file", data=b"x"))])
QUICK = EndpointSettings(retry_s=0.001, retry_max_s=0.002)

Resolve = Callable[[str], Awaitable[ResolvedImage]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.db") as opened:
        yield opened


def failing(times: int, error: Exception, asked: list[str]) -> Resolve:
    """A registry that answers with `error` so many times."""

    async def resolve(reference: str) -> ResolvedImage:
        asked.append(reference)
        if len(asked) <= times:
            raise error
        return RESOLVED

    return resolve


def waits_for(endpoint: Endpoint) -> str:
    assert endpoint.pending is not None
    return endpoint.pending.deployment_id


async def test_a_registry_that_is_busy_is_asked_again_until_it_answers(store: Store) -> None:
    owner, asked = endpoint(deployment(resolved=False)), list[str]()
    store.put(owner)
    busy = Unavailable("registry r limits our rate")
    resolver = Resolver(store, failing(8, busy, asked), QUICK, lambda: 5.0)
    await resolver.run(owner.key, waits_for(owner))
    found = store.require(Endpoint, owner.key).document
    assert found.pending is not None
    (image,) = found.pending.variants[0].images
    assert (image.reference, image.manifest_digest) == (IMAGE, RESOLVED.manifest_digest)
    assert len(asked) == 9
    assert resolver.failures == resolver.waiting == {}


async def test_a_registry_that_never_answers_is_given_up_after_the_variants_time(
    store: Store,
) -> None:
    plain = deployment(resolved=False)
    variant = plain.variants[0]
    spec = replace(variant.spec, provision_timeout_s=0.05)
    owner = endpoint(replace(plain, variants=(replace(variant, spec=spec),)))
    store.put(owner)
    resolver = Resolver(store, failing(10**6, Unavailable("it answers 503"), []), QUICK, lambda: 0)
    await resolver.run(owner.key, waits_for(owner))
    reason = resolver.failures[waits_for(owner)]
    assert "cannot be pulled" in reason
    assert "it answers 503 (tried" in reason


async def test_a_registry_that_never_says_anything_is_bounded_by_the_same_time(
    store: Store,
) -> None:
    plain = deployment(resolved=False)
    variant = plain.variants[0]
    spec = replace(variant.spec, provision_timeout_s=0.05)
    owner = endpoint(replace(plain, variants=(replace(variant, spec=spec),)))
    store.put(owner)

    async def hang(reference: str) -> ResolvedImage:
        await asyncio.Event().wait()
        raise AssertionError

    resolver = Resolver(store, hang, QUICK, lambda: 0.0)
    await resolver.run(owner.key, waits_for(owner))
    assert "its registry does not answer" in resolver.failures[waits_for(owner)]


async def test_the_pause_is_as_long_as_the_registry_asks_for(store: Store) -> None:
    owner = endpoint(deployment(resolved=False))
    store.put(owner)
    busy = Unavailable("registry r limits our rate", retry_after_s=600.0)
    resolver = Resolver(store, failing(1, busy, []), QUICK, lambda: 0.0)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(resolver.run(owner.key, waits_for(owner)))
        async with asyncio.timeout(30):
            while not resolver.waiting:  # noqa: ASYNC110  # a dict tells nobody
                await asyncio.sleep(0)
        assert resolver.waiting == {
            waits_for(owner): "registry r limits our rate; tried again in 600 s"
        }
        task.cancel()
    assert resolver.waiting == {}


async def test_an_image_that_is_not_there_fails_at_once(store: Store) -> None:
    owner, asked = endpoint(deployment(resolved=False)), list[str]()
    store.put(owner)
    resolver = Resolver(store, failing(9, NotFound("no such tag"), asked), QUICK, lambda: 0.0)
    await resolver.run(owner.key, waits_for(owner))
    assert "no such tag" in resolver.failures[waits_for(owner)]
    assert len(asked) == 1


async def test_an_error_that_nobody_foresaw_is_tried_three_times(store: Store) -> None:
    owner, asked = endpoint(deployment(resolved=False)), list[str]()
    store.put(owner)
    resolver = Resolver(store, failing(9, RecursionError("too deep"), asked), QUICK, lambda: 0.0)
    await resolver.run(owner.key, waits_for(owner))
    assert "RecursionError: too deep" in resolver.failures[waits_for(owner)]
    assert len(asked) == 3


async def test_nobody_is_asked_for_an_endpoint_that_is_deleted(store: Store) -> None:
    owner, asked = endpoint(deployment(resolved=False)), list[str]()
    store.put(owner)

    async def resolve(reference: str) -> ResolvedImage:
        asked.append(reference)
        store.delete(Endpoint, owner.key)
        raise Unavailable("not now")

    await Resolver(store, resolve, QUICK, lambda: 0.0).run(owner.key, waits_for(owner))
    assert len(asked) == 1


async def test_the_version_of_a_component_is_resolved_by_the_same_rules(store: Store) -> None:
    made = component_world.world()
    made.add("a")
    component, asked = made.components["a"], list[str]()
    store.put(made.endpoint)
    store.put(component)
    resolver = Resolver(store, failing(2, Unavailable("busy"), asked), QUICK, lambda: 7.0)
    await resolver.run(made.endpoint.key, component.current.version_id)
    found = store.require(InferenceComponent, component.key).document
    assert found.current.image is not None
    assert found.current.image.manifest_digest == RESOLVED.manifest_digest
    assert len(asked) == 3


async def test_failures_of_what_is_wanted_no_more_are_forgotten(store: Store) -> None:
    resolver = Resolver(store, failing(0, NotFound(""), []), QUICK, lambda: 0.0)
    resolver.failures.update(old="no", new="no")
    resolver.forget_all_but({"new", "another"})
    assert resolver.failures == {"new": "no"}
