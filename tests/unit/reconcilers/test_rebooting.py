"""After a reboot the store says that nothing runs, until it is heard of again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.reconcilers.endpoint_world import serving
from zeropull.reconcilers.rebooting import boot_id, note_reboot
from zeropull.resources.endpoints import Endpoint, EndpointStatus
from zeropull.resources.instances import CopyRecord
from zeropull.statestore import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.db") as opened:
        yield opened


def test_nothing_serves_after_a_reboot_until_it_is_heard_of(store: Store) -> None:
    assert not note_reboot(store, "first")
    world = serving(2)
    store.put(world.endpoint)
    for copy in world.copies.values():
        store.put(copy)
    assert not note_reboot(store, "first"), "only the control plane was started again"
    assert store.require(Endpoint, world.endpoint.key).document == world.endpoint
    assert note_reboot(store, "second")
    world.endpoint = store.require(Endpoint, world.endpoint.key).document
    world.copies = {s.document.copy_id: s.document for s in store.select(CopyRecord)}
    assert world.endpoint.status is EndpointStatus.OUT_OF_SERVICE
    assert {c.state for c in world.copies.values()} == {"pending"}
    world.plan()
    assert world.endpoint.status is EndpointStatus.OUT_OF_SERVICE
    world.settle(2)
    assert world.endpoint.status is EndpointStatus.IN_SERVICE


def test_a_store_that_knows_no_boot_only_learns_this_one(store: Store) -> None:
    world = serving(1)
    store.put(world.endpoint)
    assert not note_reboot(store, boot_id())
    assert store.require(Endpoint, world.endpoint.key).document == world.endpoint
