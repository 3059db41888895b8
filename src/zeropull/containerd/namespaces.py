"""containerd's namespaces."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from google.protobuf.empty_pb2 import Empty

from zeropull.containerd._generated import namespaces_pb2
from zeropull.containerd.connection import Connection
from zeropull.errors import AlreadyExists, NotFound

SERVICE = "containerd.services.namespaces.v1.Namespaces"


class NamespacesClient:
    """Namespaces of one containerd; the connection's own namespace need not exist."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(self) -> list[str]:
        answer = await self._connection.call(
            f"{SERVICE}/List",
            namespaces_pb2.ListNamespacesRequest(),
            namespaces_pb2.ListNamespacesResponse,
        )
        return [namespace.name for namespace in answer.namespaces]

    async def ensure(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """Create the namespace; one that is there stays as it is."""
        namespace = namespaces_pb2.Namespace(name=name, labels=dict(labels or {}))
        with suppress(AlreadyExists):
            await self._connection.call(
                f"{SERVICE}/Create",
                namespaces_pb2.CreateNamespaceRequest(namespace=namespace),
                namespaces_pb2.CreateNamespaceResponse,
            )

    async def delete(self, name: str) -> None:
        """Idempotent.

        Raises:
            Conflict: the namespace is not empty.
        """
        with suppress(NotFound):
            await self._connection.call(
                f"{SERVICE}/Delete", namespaces_pb2.DeleteNamespaceRequest(name=name), Empty
            )
