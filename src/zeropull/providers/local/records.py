"""What an instance was launched with, kept on its own disk folder as `instance.json`.

Not a second truth: whether the instance runs is read from its processes. The record is what a
launch or a repair needs to be finished by another process than the one that began it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from zeropull.linux.files import replace_file
from zeropull.providers.local.names import INSTANCE_ID, FleetNames, InstanceNames
from zeropull.providers.protocol import LaunchRequest, MachineShape, Volume


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    generation: int
    path: str
    index_digest: str


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """`accelerators`: CDI device names, or plain indexes of simulated ones."""

    instance_id: str
    shape: MachineShape
    node_token: str = field(repr=False)
    accelerators: tuple[str, ...] = ()
    simulated: bool = False
    volumes: tuple[VolumeRecord, ...] = ()
    disk_bytes: int | None = None
    source_token: str = field(default="", repr=False)  # "": volumes are attached
    labels: dict[str, str] = field(default_factory=dict)

    def with_volume(self, volume: Volume) -> InstanceRecord:
        record = VolumeRecord(volume.generation, str(volume.path), volume.index_digest)
        return replace(self, volumes=(*self.without_volume(volume.generation).volumes, record))

    def without_volume(self, generation: int) -> InstanceRecord:
        kept = tuple(volume for volume in self.volumes if volume.generation != generation)
        return replace(self, volumes=kept)


def new_record(
    request: LaunchRequest,
    accelerators: tuple[str, ...],
    *,
    simulated: bool,
    source_token: str = "",
) -> InstanceRecord:
    return InstanceRecord(
        instance_id=request.instance_id,
        shape=request.shape,
        node_token=request.node_token,
        accelerators=accelerators,
        simulated=simulated,
        volumes=tuple(
            VolumeRecord(volume.generation, str(volume.path), volume.index_digest)
            for volume in request.volumes
        ),
        disk_bytes=request.disk_bytes,
        source_token=source_token,
        labels=dict(request.labels),
    )


def read_record(names: InstanceNames) -> InstanceRecord | None:
    """None: there is none, or a crash came before it was written."""
    try:
        return msgspec.json.decode(names.record_file.read_bytes(), type=InstanceRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def write_record(names: InstanceNames, record: InstanceRecord) -> None:
    """Replace the record. It holds the node's token, so only its owner can read it."""
    replace_file(names.record_file, msgspec.json.encode(record))


def instance_folders(names: FleetNames) -> list[str]:
    """Ids of all instances that have a disk folder."""
    return sorted(_ids(names.instances_dir))


def run_folders(names: FleetNames) -> list[str]:
    """Ids of all instances that have a folder of sockets and mounts."""
    return sorted(_ids(names.run_dir))


def _ids(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir() if INSTANCE_ID.match(path.name)]
    except FileNotFoundError:
        return []
