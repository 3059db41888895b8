"""The plugin, spoken to directly and through containerds of two major versions."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fixtures.containerds import CURRENT, DEBIAN, Containerd, running_containerd
from tests.fixtures.mounting import mounted
from tests.fixtures.plugin import Plugin, running_plugin
from zeropull.containerd.connection import Connection, open_channel
from zeropull.containerd.snapshots import Mount, SnapshotsClient
from zeropull.resources.node import SNAPSHOTTER

DIRECT = "plugin"


@dataclass
class Stage:
    """One way to the plugin. `key` makes a name as the caller of the plugin would spell it."""

    kind: str
    plugin: Plugin
    containerd: Containerd | None = None
    unique: str = field(default_factory=lambda: secrets.token_hex(3))

    def key(self, name: str) -> str:
        own = f"{name}-{self.unique}"
        return f"{self.plugin.namespace}/1/{own}" if self.containerd is None else own

    @asynccontextmanager
    async def snapshots(self) -> AsyncIterator[SnapshotsClient]:
        """A client; under a lease where garbage collection would take what a test makes."""
        if self.containerd is None:
            channel = open_channel(self.plugin.socket)
            try:
                yield SnapshotsClient(Connection(channel, self.plugin.namespace), SNAPSHOTTER)
            finally:
                await channel.close(None)
            return
        async with self.containerd.client() as client, client.leased() as leased:
            yield leased.snapshots(SNAPSHOTTER)


@dataclass
class Layers:
    """The snapshots of one test, through one client."""

    stage: Stage
    client: SnapshotsClient
    work: Path

    def key(self, name: str) -> str:
        return self.stage.key(name)

    async def prepare(self, name: str, parent: str = "", **labels: str) -> list[Mount]:
        return await self.client.prepare(self.key(name), parent and self.key(parent), labels)

    async def view(self, name: str, parent: str = "") -> list[Mount]:
        return await self.client.view(self.key(name), parent and self.key(parent))

    async def commit(self, name: str, key: str, **labels: str) -> None:
        await self.client.commit(self.key(name), self.key(key), labels)

    async def remove(self, name: str) -> None:
        await self.client.remove(self.key(name))

    def mounted(self, mounts: list[Mount]) -> _Mounted:
        return _Mounted(mounts, self.work / secrets.token_hex(4))

    async def layer(self, name: str, parent: str, change: Callable[[Path], object]) -> None:
        """Prepare, change what is mounted, commit under `name`."""
        mounts = await self.prepare(f"{name}-active", parent)
        with self.mounted(mounts) as root:
            change(root)
        await self.commit(name, f"{name}-active")


class _Mounted:
    def __init__(self, mounts: list[Mount], target: Path) -> None:
        self._block = mounted(mounts, target)

    def __enter__(self) -> Path:
        return self._block.__enter__()

    def __exit__(self, *error: object) -> None:
        self._block.__exit__(None, None, None)


@pytest.fixture(scope="session", params=[DIRECT, DEBIAN, CURRENT])
def wired(request: pytest.FixtureRequest) -> Iterator[tuple[str, Plugin, Containerd | None]]:
    namespace = f"zptest-{secrets.token_hex(4)}"
    with running_plugin(namespace) as plugin:
        if request.param == DIRECT:
            yield DIRECT, plugin, None
        else:
            with running_containerd(request.param, plugin) as containerd:
                yield request.param, plugin, containerd


@pytest.fixture
def stage(wired: tuple[str, Plugin, Containerd | None]) -> Stage:
    kind, plugin, containerd = wired
    return Stage(kind, plugin, containerd)


@pytest.fixture
async def layers(stage: Stage, tmp_path: Path) -> AsyncIterator[Layers]:
    async with stage.snapshots() as client:
        yield Layers(stage, client, tmp_path)


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    """A plugin of the test's own, which it may kill."""
    with running_plugin(f"zptest-{secrets.token_hex(4)}") as plugin:
        yield plugin
