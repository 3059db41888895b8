"""The agent's durable state, N/agent: what it was told, its copies, and the images' documents.

    assignment.json          the newest assignment, so that a restart needs no control plane
    copies/<copy_id>.json    CopyRecord
    blobs/<hex>              manifests and configs, so that a further copy asks no registry
    dropped.json             chain IDs of volumes whose bytes turned out bad
    uncached.json            manifest digests of images that go with their last copy

Files are replaced by rename: a killed agent leaves the old or the new one. They are not fsynced,
since everything of a node ends with its machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from zeropull.controlapi.messages import CopyAssignment, CopyState, FailureKind, NodeAssignment
from zeropull.errors import InvalidInput
from zeropull.linux.files import replace_file
from zeropull.oci.digests import digest_of, hex_of
from zeropull.resources.stages import Stage, StageRecord
from zeropull.telemetry import get_logger

_COPY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,75}")  # also what containerd takes as an ID

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CopyRecord:
    """One copy as it stands. `image_name` and `snapshotter` are set once its image is there;
    `container_started_s` is of the running container, `first_started_s` of the first one."""

    assignment: CopyAssignment
    state: CopyState
    address: str = ""
    snapshotter: str = ""
    image_name: str = ""
    models: tuple[str, ...] = ()  # names of its artifacts in N/models
    first_tried_s: float | None = None
    first_started_s: float | None = None
    container_started_s: float | None = None
    healthy_at_s: float | None = None
    last_healthy_s: float | None = None
    restarts: int = 0
    failures_in_a_row: int = 0
    next_start_s: float | None = None
    failure: FailureKind | None = None
    message: str = ""
    stages: dict[Stage, StageRecord] = field(default_factory=dict)

    @property
    def copy_id(self) -> str:
        return self.assignment.copy_id


def check_copy_id(copy_id: str) -> str:
    """Return it if it can name files, a container and a cgroup.

    Raises:
        InvalidInput: it cannot.
    """
    if not _COPY_ID.fullmatch(copy_id):
        raise InvalidInput(f"copy id {copy_id!r} must match {_COPY_ID.pattern}")
    return copy_id


class AgentRecords:
    """Reads and writes N/agent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copies = folder / "copies"
        self._blobs = folder / "blobs"
        for each in (folder, self._copies, self._blobs):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)

    def load_assignment(self) -> NodeAssignment | None:
        try:
            content = (self._folder / "assignment.json").read_bytes()
            return msgspec.json.decode(content, type=NodeAssignment)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def save_assignment(self, assignment: NodeAssignment) -> None:
        _replace(self._folder / "assignment.json", msgspec.json.encode(assignment))

    def load_copies(self) -> dict[str, CopyRecord]:
        found: dict[str, CopyRecord] = {}
        for path in self._copies.glob("*.json"):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=CopyRecord)
            except msgspec.MsgspecError as error:
                log.warning("record of a copy is damaged and dropped", path=path, error=str(error))
                path.unlink(missing_ok=True)
                continue
            found[record.copy_id] = record
        return found

    def save_copy(self, record: CopyRecord) -> None:
        path = self._copies / f"{check_copy_id(record.copy_id)}.json"
        _replace(path, msgspec.json.encode(record))

    def remove_copy(self, copy_id: str) -> None:
        (self._copies / f"{check_copy_id(copy_id)}.json").unlink(missing_ok=True)

    def load_dropped(self) -> set[str]:
        try:
            content = (self._folder / "dropped.json").read_bytes()
            return msgspec.json.decode(content, type=set[str])
        except (FileNotFoundError, msgspec.MsgspecError):
            return set()

    def save_dropped(self, chain_ids: set[str]) -> None:
        _replace(self._folder / "dropped.json", msgspec.json.encode(sorted(chain_ids)))

    def load_uncached(self) -> set[str]:
        try:
            content = (self._folder / "uncached.json").read_bytes()
            return msgspec.json.decode(content, type=set[str])
        except (FileNotFoundError, msgspec.MsgspecError):
            return set()

    def save_uncached(self, manifest_digests: set[str]) -> None:
        _replace(self._folder / "uncached.json", msgspec.json.encode(sorted(manifest_digests)))

    def blobs(self) -> list[str]:
        """Digests of all documents that are kept."""
        return [f"sha256:{p.name}" for p in self._blobs.iterdir() if not p.name.startswith(".")]

    def remove_blob(self, digest: str) -> None:
        (self._blobs / hex_of(digest)).unlink(missing_ok=True)

    def load_blob(self, digest: str) -> bytes | None:
        """The document, None when it is not here or damaged."""
        try:
            content = (self._blobs / hex_of(digest)).read_bytes()
        except FileNotFoundError:
            return None
        return content if digest_of(content) == digest else None

    def save_blob(self, digest: str, content: bytes) -> None:
        _replace(self._blobs / hex_of(digest), content)


def _replace(path: Path, content: bytes) -> None:
    replace_file(path, content, is_durable=False)
