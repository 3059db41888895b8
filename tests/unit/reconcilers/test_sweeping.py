"""What the engine has is compared with what the store knows; silent instances are asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.memory_engine import MemoryEngine
from tests.unit.reconcilers.endpoint_world import serving
from tests.unit.reconcilers.test_probing import server
from zeropull.reconcilers.silence import Silence
from zeropull.reconcilers.sweeping import Sweeper
from zeropull.resources.settings import EndpointSettings
from zeropull.statestore import Store

SETTINGS = EndpointSettings()


class Swept:
    """A store with one endpoint and its running instance, which the engine has too."""

    def __init__(self, store: Store) -> None:
        self.now_s = 100.0
        self.changes = 0
        self.store = store
        self.world = serving(1)
        (self.instance,) = self.world.running()
        (self.copy,) = self.world.copies.values()
        for document in (self.world.endpoint, self.instance, self.copy):
            store.put(document)
        self.engine: MemoryEngine = self.world.engine
        self.silence = Silence(SETTINGS, lambda: self.now_s)
        self.sweeper = Sweeper(store, self.engine, self.silence, self.note)

    def note(self, changed: frozenset[str]) -> None:
        self.changes += 1

    def fall_silent(self) -> None:
        self.engine.told_s = self.now_s
        for _ in range(int(SETTINGS.node_lost_s) - 1):
            self.now_s += 1.0
            self.silence.begin_round()

    @property
    def lost(self) -> dict[str, str]:
        return self.silence.lost([self.instance], {self.instance.instance_id: self.engine.told_s})


@pytest.fixture
def swept(tmp_path: Path) -> Iterator[Swept]:
    with Store.open(tmp_path / "store.db") as store:
        yield Swept(store)


async def test_an_instance_is_there_or_not_once_the_engine_was_asked(swept: Swept) -> None:
    assert swept.sweeper.is_there(swept.instance) is None
    await swept.sweeper.sweep()
    assert swept.sweeper.is_there(swept.instance) is True
    await swept.engine.terminate(swept.instance.instance_id)
    await swept.sweeper.sweep()
    assert swept.sweeper.is_there(swept.instance) is False
    assert swept.changes == 2
    another = replace(swept.instance, instance_id="i-" + "e" * 17)
    assert swept.sweeper.is_there(another) is None


async def test_an_instance_that_the_store_does_not_know_is_ended(swept: Swept) -> None:
    stranger = replace(swept.instance, instance_id="i-" + "e" * 17)
    await swept.engine.launch(swept.world.endpoint, stranger)
    await swept.sweeper.sweep()
    assert await swept.engine.list_instances() == {swept.instance.instance_id}


async def test_a_silent_instance_whose_copy_answers_the_network_stays(swept: Swept) -> None:
    async with server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as port:
        swept.store.put(replace(swept.copy, host="127.0.0.1", port=port))
        swept.fall_silent()
        await swept.sweeper.ask_silent()
        swept.now_s += 2.0
        assert swept.lost == {}


async def test_a_silent_instance_whose_copy_is_silent_too_is_lost(swept: Swept) -> None:
    async with server(b"") as port:
        pass
    swept.store.put(replace(swept.copy, host="127.0.0.1", port=port))
    swept.fall_silent()
    await swept.sweeper.ask_silent()
    swept.now_s += 2.0
    assert swept.lost != {}
