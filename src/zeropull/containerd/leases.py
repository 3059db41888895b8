"""containerd's leases: what is made under one is safe from garbage collection until it ends."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.protobuf.empty_pb2 import Empty

from zeropull.containerd._generated import leases_pb2
from zeropull.containerd.connection import Connection
from zeropull.errors import NotFound, ZeropullError

LEASE_PREFIX = "zeropull-"  # of the leases that we hold
SERVICE = "containerd.services.leases.v1.Leases"
EXPIRE_LABEL = "containerd.io/gc.expire"


@dataclass(frozen=True, slots=True)
class LeaseResource:
    """`type`: "content", "ingests" or "snapshots/<snapshotter>"."""

    id: str
    type: str


class LeasesClient:
    """Leases of one namespace."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, lease_id: str, *, expires_s: float | None = None) -> str:
        """Raises:
        AlreadyExists: there is a lease of this ID.
        """
        labels = {}
        if expires_s is not None:
            until = datetime.now(UTC) + timedelta(seconds=expires_s)
            labels[EXPIRE_LABEL] = until.isoformat(timespec="seconds").replace("+00:00", "Z")
        request = leases_pb2.CreateRequest(id=lease_id, labels=labels)
        await self._connection.call(f"{SERVICE}/Create", request, leases_pb2.CreateResponse)
        return lease_id

    async def delete(self, lease_id: str, *, sync: bool = False) -> None:
        """End the lease. `sync`: return once garbage collection has run."""
        request = leases_pb2.DeleteRequest(id=lease_id, sync=sync)
        await self._connection.call(f"{SERVICE}/Delete", request, Empty)

    async def add(self, lease_id: str, resource: LeaseResource) -> None:
        request = leases_pb2.AddResourceRequest(
            id=lease_id, resource=leases_pb2.Resource(id=resource.id, type=resource.type)
        )
        await self._connection.call(f"{SERVICE}/AddResource", request, Empty)

    async def resources(self, lease_id: str) -> list[LeaseResource]:
        answer = await self._connection.call(
            f"{SERVICE}/ListResources",
            leases_pb2.ListResourcesRequest(id=lease_id),
            leases_pb2.ListResourcesResponse,
        )
        return [LeaseResource(id=found.id, type=found.type) for found in answer.resources]

    @asynccontextmanager
    async def hold(self, *, expires_s: float = 3600.0) -> AsyncIterator[str]:
        """A lease for the length of a block; it ends by itself after `expires_s` if we die."""
        lease_id = await self.create(f"{LEASE_PREFIX}{secrets.token_hex(8)}", expires_s=expires_s)
        try:
            yield lease_id
        finally:
            # The end of a cancelled block must still reach containerd; if it cannot, the lease
            # expires.
            with suppress(NotFound, ZeropullError):
                await asyncio.shield(self.delete(lease_id))

    async def list(self) -> list[str]:
        """The IDs of all leases."""
        answer = await self._connection.call(
            f"{SERVICE}/List", leases_pb2.ListRequest(), leases_pb2.ListResponse
        )
        return [lease.id for lease in answer.leases]
