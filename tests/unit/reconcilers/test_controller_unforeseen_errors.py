"""An error that nobody foresaw stays with the endpoint that it happened to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.memory_engine import MemoryEngine
from tests.unit.reconcilers.endpoint_world import deployment, endpoint
from tests.unit.reconcilers.memory_world import shape_of
from zeropull.controlapi.exchange import Exchange
from zeropull.imagecache.generations import GenerationStore
from zeropull.oci.images import ResolvedImage
from zeropull.providers.local.loopback_ports import loopback_ports
from zeropull.providers.protocol import MachineShape, ProvidedInstance
from zeropull.reconcilers.controller import Controller
from zeropull.reconcilers.engine import Engine, Observed
from zeropull.reconcilers.imagecaches.controller import CacheController
from zeropull.reconcilers.node_engine import NodeEngine
from zeropull.resources.endpoints import Endpoint, EndpointStatus
from zeropull.resources.instances import CopyRecord, Instance, InstanceState
from zeropull.resources.settings import EndpointSettings, Settings
from zeropull.statestore import Store


class BrokenProvider:
    """Every call fails as the operating system makes calls fail."""

    def __init__(self) -> None:
        self.healed: list[str] = []
        self.listed: list[ProvidedInstance] = []

    async def list_instances(self) -> list[ProvidedInstance]:
        return self.listed

    async def heal(self, instance_id: str) -> bool:
        self.healed.append(instance_id)
        return False

    async def launch(self, request: object) -> ProvidedInstance:
        raise PermissionError(1, "no")

    async def terminate(self, instance_id: str) -> None:
        raise PermissionError(1, "no")


class BlindEngine(MemoryEngine):
    """It can do everything but look."""

    def observe(self, instance_id: str) -> Observed | None:
        raise OSError(5, "no")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.db") as opened:
        yield opened


async def resolve(reference: str) -> ResolvedImage:
    raise RecursionError("too deep")


async def open_ways(endpoint: Endpoint) -> None:
    pass


def make(
    store: Store,
    provider: Any,
    root: Path,
    clock: Callable[[], float] = lambda: 0.0,
    endpoints: EndpointSettings | None = None,
    engine: Engine | None = None,
) -> Controller:
    exchange = Exchange()
    caches = CacheController(
        store,
        exchange,
        provider,
        GenerationStore(root),
        image=None,  # type: ignore[arg-type]  # nothing here comes that far
        has_accelerators=lambda name: True,
        enabled=False,
        all_instance_types=False,
        clock=lambda: 0.0,
    )
    settings = Settings(endpoints=endpoints or EndpointSettings())
    nodes = NodeEngine(
        store,
        exchange,
        provider,
        caches,
        settings,
        shape=lambda name: MachineShape(name, 4, 1 << 30),
        registry_access=lambda image: None,
        open_ways=open_ways,
    )
    return Controller(
        store,
        exchange,
        engine or nodes,
        caches,
        settings,
        resolve=resolve,
        shape_of=shape_of,
        clock=clock,
        monotonic=clock,
    )


def instance(state: InstanceState) -> Instance:
    e = endpoint(deployment())
    assert e.pending is not None
    return Instance(
        "i-" + "0" * 17, e.account, e.uid, e.name, "main", "ml.g5.xlarge",
        e.pending.deployment_id, state, "token", 0.0,
    )  # fmt: skip


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_deployment_fails_by_an_image_that_nobody_can_resolve(
    store: Store, tmp_path: Path
) -> None:
    store.put(endpoint(deployment(resolved=False)))
    control = make(store, BrokenProvider(), tmp_path, endpoints=EndpointSettings(retry_s=0.0))
    control.reconcile()
    await settle()
    control.reconcile()
    found = store.require(Endpoint, endpoint(deployment()).key).document
    assert found.status is EndpointStatus.FAILED
    assert "too deep" in (found.failure_reason or "")


async def test_a_launch_that_the_system_refuses_is_tried_again_after_a_pause(
    store: Store, tmp_path: Path
) -> None:
    store.put(endpoint(deployment()))
    control = make(store, BrokenProvider(), tmp_path)
    control.reconcile()
    await settle()
    (found,) = [s.document for s in store.select(Instance)]
    assert found.state is InstanceState.WANTED
    assert found.next_attempt_s is not None
    assert "PermissionError" in found.failure


async def test_a_termination_that_fails_waits_for_the_next_round(
    store: Store, tmp_path: Path
) -> None:
    store.put(replace(endpoint(deployment()), status=EndpointStatus.DELETING))
    store.put(instance(InstanceState.TERMINATING))
    control = make(store, BrokenProvider(), tmp_path)
    control._wake.clear()
    control.reconcile()
    await settle()
    assert not control._wake.is_set()


def poison(store: Store, status: EndpointStatus = EndpointStatus.CREATING) -> Endpoint:
    """An endpoint that no plan can read: a copy failed in a way that nobody knows."""
    made = replace(endpoint(deployment()), status=status)
    assert made.pending is not None
    store.put(made)
    node = replace(
        instance(InstanceState.RUNNING), deployment_id=made.pending.deployment_id, launched_s=0.0
    )
    store.put(node)
    store.put(
        CopyRecord(
            "c-poison", node.instance_id, made.account, made.uid, made.name, "main",
            node.deployment_id, 0.0, state="failed", failure="of_a_kind_to_come",
        )
    )  # fmt: skip
    return made


async def test_one_endpoints_trouble_is_told_and_leaves_the_others_cared_for(
    store: Store, tmp_path: Path
) -> None:
    bad = poison(store)
    plain = endpoint(deployment(resolved=False))
    other = replace(plain, name="other", arn=plain.arn + "2", uid="v" * 32)
    store.put(other)
    control = make(store, BrokenProvider(), tmp_path, endpoints=EndpointSettings(retry_s=0.5))
    control.reconcile()
    await settle()
    control.reconcile()
    found = store.require(Endpoint, bad.key).document
    assert found.status is EndpointStatus.CREATING
    assert "ValueError: 'of_a_kind_to_come'" in found.failure_reason
    assert "tried again in" in found.failure_reason
    assert store.select(Instance, endpoint_uid=other.uid) == []
    assert store.require(Endpoint, other.key).document.status is EndpointStatus.CREATING
    assert control._effects._running.get(plain.pending.deployment_id)
    await control._effects.close()


async def test_trouble_is_tried_again_with_pauses_and_given_up_in_the_end(
    store: Store, tmp_path: Path
) -> None:
    bad = poison(store)
    now_s = [0.0]
    settings = EndpointSettings(provision_timeout_s=600.0, node_start_s=1e9)
    control = make(store, BrokenProvider(), tmp_path, lambda: now_s[0], settings)
    told = set()
    for _ in range(800):
        control.reconcile()
        found = store.require(Endpoint, bad.key).document
        told.add(found.failure_reason)
        if found.status is not EndpointStatus.CREATING:
            break
        now_s[0] += 1.0
    assert found.status is EndpointStatus.FAILED
    assert 600.0 <= now_s[0] <= 600.0 + settings.retry_max_s
    assert "ValueError" in found.failure_reason
    assert len(told) < 20


@pytest.mark.parametrize("status", [EndpointStatus.DELETING, EndpointStatus.FAILED])
async def test_what_no_plan_can_read_ends_without_one(
    store: Store, tmp_path: Path, status: EndpointStatus
) -> None:
    bad = poison(store, status)
    engine = BlindEngine()
    await engine.launch(bad, instance(InstanceState.RUNNING))
    now_s = [0.0]
    control = make(store, BrokenProvider(), tmp_path, lambda: now_s[0], engine=engine)
    for _ in range(20):
        now_s[0] += 1.0
        control.reconcile()
        await settle()
    assert await engine.list_instances() == frozenset()
    assert store.select(Instance) == store.select(CopyRecord) == []
    left = store.get(Endpoint, bad.key)
    assert left is None if status is EndpointStatus.DELETING else left is not None


async def test_trouble_that_is_over_is_told_no_more(store: Store, tmp_path: Path) -> None:
    bad = poison(store)
    now_s = [0.0]
    control = make(store, BrokenProvider(), tmp_path, lambda: now_s[0])
    control.reconcile()
    assert store.require(Endpoint, bad.key).document.failure_reason
    store.delete(CopyRecord, "c-poison")
    now_s[0] += 3.0
    control.reconcile()
    assert store.require(Endpoint, bad.key).document.failure_reason == ""


def test_a_port_that_does_not_exist_opens_nothing() -> None:
    assert loopback_ports(endpoint(deployment(image="127.0.0.1:99999/model:1")), {}) == frozenset()
    assert loopback_ports(endpoint(deployment(image="127.0.0.1:5000/model:1")), {}) == {5000}
