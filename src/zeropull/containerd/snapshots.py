"""containerd's snapshots service, for one snapshotter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from zeropull.containerd._generated import snapshots_pb2, types_pb2
from zeropull.containerd.connection import Connection
from zeropull.oci.digests import digest_of

SERVICE = "containerd.services.snapshots.v1.Snapshots"
TARGET_LABEL = "containerd.io/snapshot.ref"
# Beside TARGET_LABEL, from containerd 2.3 on: the chain ID of the layer below, if there is one.
PARENT_CHAIN_LABEL = "containerd.io/snapshot/parent-chain-id"
# Beside TARGET_LABEL, for our own snapshotter: the target stands for all of its layers at once.
# The value is `chain_digest` of them. containerd hands on labels of this prefix only.
WHOLE_IMAGE_LABEL = "containerd.io/snapshot/zeropull.whole-image"


def chain_digest(chain_ids: Sequence[str]) -> str:
    """Of the chain IDs of an image, the lowest first."""
    return digest_of("\n".join(chain_ids).encode())


class SnapshotKind(StrEnum):
    """As containerd's filters spell them."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class Mount:
    """What mount(2) needs, but for the target."""

    type: str
    source: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """`parent` is "" for the lowest. Times in Unix nanoseconds."""

    name: str
    parent: str
    kind: SnapshotKind
    labels: Mapping[str, str] = field(default_factory=dict)
    created_ns: int = 0
    updated_ns: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotUsage:
    size_bytes: int
    inodes: int


class SnapshotsClient:
    """All methods of the service; names and keys are those of the client's namespace."""

    def __init__(self, connection: Connection, snapshotter: str) -> None:
        self._connection = connection
        self.snapshotter = snapshotter

    async def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Make an active snapshot.

        Raises:
            AlreadyExists: `key` is taken, or the labels' target is there already.
        """
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=self.snapshotter, key=key, parent=parent, labels=dict(labels or {})
        )
        answer = await self._connection.call(
            f"{SERVICE}/Prepare", request, snapshots_pb2.PrepareSnapshotResponse
        )
        return mounts_from_messages(answer.mounts)

    async def view(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Make a read-only snapshot."""
        request = snapshots_pb2.ViewSnapshotRequest(
            snapshotter=self.snapshotter, key=key, parent=parent, labels=dict(labels or {})
        )
        answer = await self._connection.call(
            f"{SERVICE}/View", request, snapshots_pb2.ViewSnapshotResponse
        )
        return mounts_from_messages(answer.mounts)

    async def mounts(self, key: str) -> list[Mount]:
        request = snapshots_pb2.MountsRequest(snapshotter=self.snapshotter, key=key)
        answer = await self._connection.call(
            f"{SERVICE}/Mounts", request, snapshots_pb2.MountsResponse
        )
        return mounts_from_messages(answer.mounts)

    async def commit(
        self, name: str, key: str, labels: Mapping[str, str] | None = None, *, parent: str = ""
    ) -> None:
        """Turn the active snapshot `key` into the committed one `name`. `parent`: of one that was
        prepared without (containerd 2.2 and newer)."""
        request = snapshots_pb2.CommitSnapshotRequest(
            snapshotter=self.snapshotter,
            name=name,
            key=key,
            labels=dict(labels or {}),
            parent=parent,
        )
        await self._connection.call(f"{SERVICE}/Commit", request, Empty)

    async def remove(self, key: str) -> None:
        """Raises:
        Conflict: it has children.
        """
        request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key)
        await self._connection.call(f"{SERVICE}/Remove", request, Empty)

    async def stat(self, key: str) -> SnapshotInfo:
        request = snapshots_pb2.StatSnapshotRequest(snapshotter=self.snapshotter, key=key)
        answer = await self._connection.call(
            f"{SERVICE}/Stat", request, snapshots_pb2.StatSnapshotResponse
        )
        return info_from_message(answer.info)

    async def update_labels(
        self, name: str, labels: Mapping[str, str], paths: Sequence[str] = ()
    ) -> SnapshotInfo:
        """Set labels. `paths`: `labels` or `labels.<key>`; none = all labels are replaced. An empty
        value takes a label away."""
        request = snapshots_pb2.UpdateSnapshotRequest(
            snapshotter=self.snapshotter,
            info=snapshots_pb2.Info(name=name, labels=dict(labels)),
            update_mask=FieldMask(paths=list(paths)) if paths else None,
        )
        answer = await self._connection.call(
            f"{SERVICE}/Update", request, snapshots_pb2.UpdateSnapshotResponse
        )
        return info_from_message(answer.info)

    async def list(self, *filters: str) -> list[SnapshotInfo]:
        """All that match any of the filters, or all."""
        request = snapshots_pb2.ListSnapshotsRequest(
            snapshotter=self.snapshotter, filters=list(filters)
        )
        answers = self._connection.stream(
            f"{SERVICE}/List", request, snapshots_pb2.ListSnapshotsResponse
        )
        return [info_from_message(info) async for answer in answers for info in answer.info]

    async def usage(self, key: str) -> SnapshotUsage:
        """What the snapshot itself takes, without its parents."""
        request = snapshots_pb2.UsageRequest(snapshotter=self.snapshotter, key=key)
        answer = await self._connection.call(
            f"{SERVICE}/Usage", request, snapshots_pb2.UsageResponse
        )
        return SnapshotUsage(size_bytes=answer.size, inodes=answer.inodes)

    async def cleanup(self) -> None:
        """Give back what removed snapshots left behind."""
        request = snapshots_pb2.CleanupRequest(snapshotter=self.snapshotter)
        await self._connection.call(f"{SERVICE}/Cleanup", request, Empty)


_KINDS = {
    snapshots_pb2.VIEW: SnapshotKind.VIEW,
    snapshots_pb2.ACTIVE: SnapshotKind.ACTIVE,
    snapshots_pb2.COMMITTED: SnapshotKind.COMMITTED,
}
_KIND_NUMBERS = {kind: number for number, kind in _KINDS.items()}


def info_from_message(message: snapshots_pb2.Info) -> SnapshotInfo:
    return SnapshotInfo(
        name=message.name,
        parent=message.parent,
        kind=_KINDS[message.kind],
        labels=dict(message.labels),
        created_ns=message.created_at.ToNanoseconds(),
        updated_ns=message.updated_at.ToNanoseconds(),
    )


def info_to_message(info: SnapshotInfo) -> snapshots_pb2.Info:
    message = snapshots_pb2.Info(
        name=info.name, parent=info.parent, kind=_KIND_NUMBERS[info.kind], labels=dict(info.labels)
    )
    message.created_at.FromNanoseconds(info.created_ns)
    message.updated_at.FromNanoseconds(info.updated_ns)
    return message


def mounts_from_messages(messages: Sequence[types_pb2.Mount]) -> list[Mount]:
    return [Mount(type=m.type, source=m.source, options=tuple(m.options)) for m in messages]


def mounts_to_messages(mounts: Sequence[Mount]) -> list[types_pb2.Mount]:
    return [types_pb2.Mount(type=m.type, source=m.source, options=m.options) for m in mounts]
