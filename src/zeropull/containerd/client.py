"""One containerd, as one of its namespaces sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from google.protobuf.empty_pb2 import Empty

from zeropull.containerd._generated import version_pb2
from zeropull.containerd.connection import Connection, open_channel
from zeropull.containerd.containers import ContainersClient
from zeropull.containerd.content import ContentClient
from zeropull.containerd.images import ImagesClient
from zeropull.containerd.leases import LeasesClient
from zeropull.containerd.namespaces import NamespacesClient
from zeropull.containerd.snapshots import SnapshotsClient
from zeropull.containerd.tasks import TasksClient


@dataclass(frozen=True, slots=True)
class ContainerdVersion:
    """`version` as containerd says it, for example "1.6.20~ds1" or "2.3.7"."""

    version: str
    revision: str


class ContainerdClient:
    """Clients of containerd's services for one namespace; an async context manager.

    Entering does not connect: the first call does, and later ones connect again when containerd
    was restarted in between.
    """

    def __init__(self, socket: Path, namespace: str) -> None:
        self._bind(Connection(open_channel(socket), namespace))

    def _bind(self, connection: Connection) -> None:
        self._connection = connection
        self.namespace = connection.namespace
        self.namespaces = NamespacesClient(connection)
        self.content = ContentClient(connection)
        self.images = ImagesClient(connection)
        self.leases = LeasesClient(connection)
        self.containers = ContainersClient(connection)
        self.tasks = TasksClient(connection)

    async def __aenter__(self) -> ContainerdClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._connection.channel.close(None)

    def snapshots(self, snapshotter: str) -> SnapshotsClient:
        return SnapshotsClient(self._connection, snapshotter)

    async def version(self, *, timeout_s: float = 10.0) -> ContainerdVersion:
        """Also the way to ask whether containerd answers.

        Raises:
            Unavailable: it does not.
        """
        answer = await self._connection.call(
            "containerd.services.version.v1.Version/Version",
            Empty(),
            version_pb2.VersionResponse,
            timeout_s=timeout_s,
        )
        return ContainerdVersion(answer.version, answer.revision)

    def under(self, lease_id: str) -> ContainerdClient:
        """The same channel; what is made through the returned client is kept by the lease. It lives
        as long as this one and is not closed on its own."""
        view = object.__new__(ContainerdClient)
        view._bind(self._connection.under(lease_id))
        return view

    @asynccontextmanager
    async def leased(self, *, expires_s: float = 3600.0) -> AsyncIterator[ContainerdClient]:
        """A client under a lease of its own, for the length of a block."""
        async with self.leases.hold(expires_s=expires_s) as lease_id:
            yield self.under(lease_id)
