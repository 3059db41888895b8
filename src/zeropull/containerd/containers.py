"""containerd's container records: an OCI runtime spec and a snapshot under an ID."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from zeropull.containerd._generated import containers_pb2, runc_options_pb2
from zeropull.containerd.connection import Connection

SERVICE = "containerd.services.containers.v1.Containers"
RUNTIME = "io.containerd.runc.v2"
_SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
_OPTIONS_TYPE = "containerd.runc.v1.Options"


@dataclass(frozen=True, slots=True)
class RuncOptions:
    """`root`: runc's state directory, host-wide by default; `binary_name`: "" = runc on PATH."""

    root: str = ""
    binary_name: str = ""
    systemd_cgroup: bool = False


@dataclass(frozen=True, slots=True)
class Container:
    """`spec` is the OCI runtime spec as JSON has it. IDs must be unique on the host."""

    id: str
    image: str
    snapshotter: str
    snapshot_key: str
    spec: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)
    runtime: str = RUNTIME
    runc: RuncOptions | None = None


class ContainersClient:
    """Container records of one namespace."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, container: Container) -> None:
        """Raises:
        AlreadyExists: the ID is taken.
        """
        request = containers_pb2.CreateContainerRequest(container=_to_message(container))
        await self._connection.call(
            f"{SERVICE}/Create", request, containers_pb2.CreateContainerResponse
        )

    async def get(self, container_id: str) -> Container:
        """Raises:
        NotFound: there is no such container.
        """
        answer = await self._connection.call(
            f"{SERVICE}/Get",
            containers_pb2.GetContainerRequest(id=container_id),
            containers_pb2.GetContainerResponse,
        )
        return _from_message(answer.container)

    async def list(self, *filters: str) -> list[Container]:
        request = containers_pb2.ListContainersRequest(filters=list(filters))
        answer = await self._connection.call(
            f"{SERVICE}/List", request, containers_pb2.ListContainersResponse
        )
        return [_from_message(container) for container in answer.containers]

    async def delete(self, container_id: str) -> None:
        """Raises:
        NotFound: there is no such container.
        Conflict: it still has a task.
        """
        request = containers_pb2.DeleteContainerRequest(id=container_id)
        await self._connection.call(f"{SERVICE}/Delete", request, Empty)


def _to_message(container: Container) -> containers_pb2.Container:
    runtime = containers_pb2.Container.Runtime(name=container.runtime)
    if container.runc is not None:
        options = runc_options_pb2.Options(
            root=container.runc.root,
            binary_name=container.runc.binary_name,
            systemd_cgroup=container.runc.systemd_cgroup,
        )
        runtime.options.CopyFrom(
            AnyMessage(type_url=_OPTIONS_TYPE, value=options.SerializeToString())
        )
    return containers_pb2.Container(
        id=container.id,
        labels=dict(container.labels),
        image=container.image,
        runtime=runtime,
        spec=AnyMessage(type_url=_SPEC_TYPE, value=json.dumps(container.spec).encode()),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
    )


def _from_message(message: containers_pb2.Container) -> Container:
    runc = None
    if message.runtime.HasField("options") and message.runtime.options.type_url == _OPTIONS_TYPE:
        options = runc_options_pb2.Options.FromString(message.runtime.options.value)
        runc = RuncOptions(
            root=options.root,
            binary_name=options.binary_name,
            systemd_cgroup=options.systemd_cgroup,
        )
    return Container(
        id=message.id,
        image=message.image,
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        spec=json.loads(message.spec.value or b"{}"),
        labels=dict(message.labels),
        runtime=message.runtime.name,
        runc=runc,
    )
