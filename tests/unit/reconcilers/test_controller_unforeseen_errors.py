"""An error that nobody foresaw stays with the endpoint that it happened to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.reconcilers.endpoint_world import deployment, endpoint
from tests.unit.reconcilers.memory_world import shape_of
from zeropull.controlapi.exchange import Exchange
from zeropull.imagecache.generations import GenerationStore
from zeropull.oci.images import ResolvedImage
from zeropull.providers.local.loopback_ports import loopback_ports
from zeropull.providers.protocol import MachineShape, ProvidedInstance
from zeropull.reconcilers import controller as controlling
from zeropull.reconcilers.controller import Controller
from zeropull.reconcilers.imagecaches.controller import CacheController
from zeropull.reconcilers.node_engine import NodeEngine
from zeropull.resources.endpoints import Endpoint, EndpointStatus
from zeropull.resources.instances import Instance, InstanceState
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


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.db") as opened:
        yield opened


async def resolve(reference: str) -> ResolvedImage:
    raise RecursionError("too deep")


async def open_ways(endpoint: Endpoint) -> None:
    pass


def make(store: Store, provider: Any, root: Path) -> Controller:
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
    settings = Settings(endpoints=EndpointSettings(retry_s=0.0))
    engine = NodeEngine(
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
        engine,
        caches,
        settings,
        resolve=resolve,
        shape_of=shape_of,
        clock=lambda: 0.0,
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
    control = make(store, BrokenProvider(), tmp_path)
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


async def test_one_endpoints_trouble_leaves_the_others_cared_for(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = endpoint(deployment(resolved=False))
    other = replace(poison, name="other", arn=poison.arn + "2", uid="v" * 32)
    store.put(poison)
    store.put(other)
    planned = controlling.plan_endpoint

    def plan(view: Any, *arguments: Any) -> Any:
        if view.endpoint.name == "demo":
            raise ValueError("nobody foresaw this")
        return planned(view, *arguments)

    monkeypatch.setattr(controlling, "plan_endpoint", plan)
    control = make(store, BrokenProvider(), tmp_path)
    control.reconcile()
    await settle()
    control.reconcile()
    assert store.require(Endpoint, poison.key).document == poison
    assert store.require(Endpoint, other.key).document.status is EndpointStatus.FAILED


def test_a_port_that_does_not_exist_opens_nothing() -> None:
    assert loopback_ports(endpoint(deployment(image="127.0.0.1:99999/model:1")), {}) == frozenset()
    assert loopback_ports(endpoint(deployment(image="127.0.0.1:5000/model:1")), {}) == {5000}
