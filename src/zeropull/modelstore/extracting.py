"""Extracts a tar.gz while it arrives, and nothing that could leave its directory.

No member is written through a link, devices and FIFOs are refused, links must be relative and may
climb only at their beginning. A target of `a/../b` would be judged by its text, while the kernel
judges it by where link `a` leads.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from zeropull.errors import ArtifactError, UnreadableImage
from zeropull.inflating.readers import DamagedStream
from zeropull.modelstore.archive import ArchiveReader, Kind, Member
from zeropull.modelstore.naming import check_part

_MAX_MEMBERS = 1_000_000
_CHECK_BYTES = 64 << 20  # of extracted data between two looks at the free space


def extract_tar_gz(
    name: str,
    parts: Iterator[memoryview],
    into: Path,
    *,
    check_room: Callable[[], None] = lambda: None,
) -> tuple[int, int]:
    """Extract the archive, whose inflated bytes are `parts`, into the existing, empty directory
    `into`; returns files and their stored bytes. A part is done with when the next is asked for.

    Blocks. Owners and times of the archive are not kept; modes are, without set-user-ID bits, and
    everybody may read. `check_room` is called again and again while data is written, since nobody
    knows the size before: what it raises ends the extraction.

    Raises:
        ArtifactError: damaged, truncated, or a member that is not allowed.
        OSError: from the disk.
    """
    return _Extraction(name, parts, into, check_room).run()


class _Extraction:
    def __init__(
        self, name: str, parts: Iterator[memoryview], into: Path, check_room: Callable[[], None]
    ) -> None:
        self._name = name
        self._archive = ArchiveReader(parts)
        self._into = into
        self._check_room = check_room
        self._size = 0
        self._checked = 0

    def run(self) -> tuple[int, int]:
        files = 0
        reading = ArtifactError, UnreadableImage, DamagedStream, EOFError
        members = enumerate(self._archive.members())
        while True:
            try:
                found = next(members, None)
            except reading as error:
                raise self._damaged(error) from error
            if found is None:
                return files, self._size
            count, member = found
            if count >= _MAX_MEMBERS:
                raise ArtifactError(f"{self._name} has more than {_MAX_MEMBERS:,} members")
            files += self._extract(member)

    def _damaged(self, error: Exception) -> ArtifactError:
        return ArtifactError(
            f"{self._name} is truncated, damaged or not a tar.gz ({error}): "
            "pack and upload it again"
        )

    def _extract(self, member: Member) -> bool:
        """Extract one member; True when it is a regular file."""
        # Leading slashes are stripped, as by GNU tar and bsdtar.
        parts = [part for part in member.name.split("/") if part not in {"", "."}]
        for part in parts:
            check_part(member.name, part)
        if member.kind is Kind.FOLDER:
            self._directory(member, parts)
            return False
        if not parts:
            raise ArtifactError(f"{self._name}: a member without a name: pack it again")
        if member.kind is Kind.DEVICE:
            raise ArtifactError(
                f"{self._name}: member {member.name!r} is a device or a FIFO, which no model may "
                "bring: pack it without"
            )
        path = self._directory(member, parts[:-1]) / parts[-1]
        target = _parts_of(member.link) if member.kind is Kind.HARD_LINK else None
        if target == parts and _is_file(path):
            return False  # GNU tar writes this when it is given a file twice
        self._make_way(member, path)
        if member.kind is Kind.FILE:
            self._write(member, path)
            return True
        if target is not None:
            _hard_link(self._name, member, self._into, target, path)
        else:
            _symlink(self._name, member, path, depth=len(parts) - 1)
        return False

    def _directory(self, member: Member, parts: list[str]) -> Path:
        """The directory below `into`, made where it is missing; never reached through a link."""
        path = self._into
        for part in parts:
            path = path / part
            try:
                path.mkdir(mode=0o755)
            except FileExistsError:
                if not stat.S_ISDIR(path.lstat().st_mode):
                    raise ArtifactError(
                        f"{self._name}: member {member.name!r} lies below {part!r}, which is not "
                        "a directory"
                    ) from None
        return path

    def _make_way(self, member: Member, path: Path) -> None:
        """A later member of the same name replaces an earlier one, but never a directory."""
        try:
            there = path.lstat()
        except FileNotFoundError:
            return
        if stat.S_ISDIR(there.st_mode):
            raise ArtifactError(
                f"{self._name}: member {member.name!r} is both a directory and something else"
            )
        path.unlink()

    def _write(self, member: Member, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o644), "wb", buffering=0) as output:

            def put(part: memoryview) -> None:
                self._count(len(part))
                while part:
                    part = part[output.write(part) :]

            segments = [(0, member.size)] if member.segments is None else member.segments
            for offset, length in segments:
                if member.segments is not None:
                    output.seek(offset)
                try:
                    self._archive.copy(length, put)
                except (UnreadableImage, DamagedStream, EOFError) as error:
                    raise self._damaged(error) from error
            if member.segments is not None:
                output.truncate(member.size)  # a hole at the end takes no room either
            os.fchmod(output.fileno(), (member.mode & 0o755) | 0o444)

    def _count(self, count: int) -> None:
        self._size += count
        if self._size - self._checked >= _CHECK_BYTES:
            self._checked = self._size
            self._check_room()


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _parts_of(link: str) -> list[str]:
    return [part for part in link.split("/") if part not in {"", "."}]


def _symlink(name: str, member: Member, path: Path, depth: int) -> None:
    target = member.link
    parts = [part for part in target.split("/") if part not in {"", "."}]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    if not target or target.startswith("/") or climbs > depth or ".." in parts[climbs:]:
        raise ArtifactError(
            f"{name}: link {member.name!r} leads to {target!r}, outside of the model: "
            "pack the file itself"
        )
    path.symlink_to(target)


def _hard_link(name: str, member: Member, into: Path, parts: list[str], path: Path) -> None:
    target = into
    try:
        for index, part in enumerate(parts):
            check_part(member.name, part)
            target = target / part
            mode = target.lstat().st_mode
            if not (stat.S_ISREG(mode) if index == len(parts) - 1 else stat.S_ISDIR(mode)):
                raise FileNotFoundError
        if not parts:
            raise FileNotFoundError
    except FileNotFoundError:
        raise ArtifactError(
            f"{name}: {member.name!r} is a hard link to {member.link!r}, "
            "which is no file of this archive"
        ) from None
    os.link(target, path, follow_symlinks=False)
