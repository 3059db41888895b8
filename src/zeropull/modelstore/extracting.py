"""Extracts a tar.gz while it arrives, and nothing that could leave its directory.

Stricter than tarfile's `data` filter: no member is written through a link, devices and FIFOs are
refused, links must be relative and may climb only at their beginning. A target of `a/../b` would be
judged by its text, while the kernel judges it by where link `a` leads.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from zeropull.errors import ArtifactError
from zeropull.inflating.readers import DamagedStream
from zeropull.modelstore.naming import check_part

_SOME_BYTES = 1 << 20
_MAX_MEMBERS = 1_000_000
_MAX_RECORD_BYTES = 1 << 20  # of one PAX header or long name, which tarfile reads into memory
_CHECK_BYTES = 64 << 20  # of extracted data between two looks at the free space
_RECORDS = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
_DAMAGED = (tarfile.TarError, EOFError, DamagedStream)


class _Inflated:
    """The archive as tarfile reads it, forwards only."""

    def __init__(self, parts: Iterator[memoryview]) -> None:
        self._parts = parts
        self._view = memoryview(b"")
        self._at = 0
        self._last = b""
        self._steps_back = False

    def some(self, limit: int = _SOME_BYTES) -> memoryview:
        """The next bytes, as many as there are at once; none at the end. They stand until the next
        call."""
        if not self._view:
            self._view = next(self._parts, self._view)
        part, self._view = self._view[:limit], self._view[limit:]
        self._at += len(part)
        self._last = bytes(part[-1:]) or self._last
        self._steps_back = False
        return part

    def read(self, size: int) -> bytes:
        found, self._steps_back = self._last if self._steps_back else b"", False
        while len(found) < size and (part := self.some(size - len(found))):
            found += part
        return found

    def tell(self) -> int:
        return self._at - self._steps_back

    def seek(self, position: int) -> int:
        """Forwards, or to the last byte: tarfile reads the one before a header again, to see that
        the archive goes on."""
        self._steps_back = False
        while self._at < position and self.some(position - self._at):
            pass
        self._steps_back = position == self._at - 1
        return self.tell()


class _BoundedInfo(tarfile.TarInfo):
    """A header that announces no more than can be read into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        """What every header goes through, in every Python from 3.11 on (newer ones have stopped
        to call the public `frombuf`)."""
        if self.type in _RECORDS and self.size > _MAX_RECORD_BYTES:
            raise ArtifactError(
                f"the archive has an extended header of {self.size:,} bytes, at most "
                f"{_MAX_RECORD_BYTES:,} are read: pack it again"
            )
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._refuse_sparse()
        return super()._proc_member(archive)  # type: ignore[misc]  # not in the stub

    def _refuse_sparse(self, *arguments: object) -> NoReturn:
        # Its holes would be written as zeros: a few bytes that fill any disk.
        raise ArtifactError(f"member {self.name!r} is a sparse file: pack it without --sparse")

    # tarfile's own, which would read the whole map of such a file into memory first.
    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


def extract_tar_gz(
    name: str,
    parts: Iterator[memoryview],
    into: Path,
    *,
    check_room: Callable[[], None] = lambda: None,
) -> tuple[int, int]:
    """Extract the archive, whose inflated bytes are `parts`, into the existing, empty directory
    `into`; returns files and their bytes. A part is done with when the next one is asked for.

    Blocks. Owners and times of the archive are not kept; modes are, without set-user-ID bits, and
    everybody may read. `check_room` is called again and again while data is written, since nobody
    knows the size before: what it raises ends the extraction.

    Raises:
        ArtifactError: damaged, truncated, or a member that is not allowed.
        OSError: from the disk.
    """
    files = size = checked = 0

    def count_bytes(count: int) -> None:
        nonlocal size, checked
        size += count
        if size - checked >= _CHECK_BYTES:
            checked = size
            check_room()

    plain = _Inflated(parts)
    try:
        with tarfile.open(
            fileobj=cast(BinaryIO, plain), mode="r:", tarinfo=_BoundedInfo
        ) as archive:
            for count, member in enumerate(archive):
                if count >= _MAX_MEMBERS:
                    raise ArtifactError(f"{name} has more than {_MAX_MEMBERS:,} members")
                files += _extract(name, plain, member, into, count_bytes)
                # tarfile keeps every member, for which a million of them need a gigabyte.
                archive.members.clear()  # type: ignore[attr-defined]  # not in the stub
            # What follows the end mark is read too, so that the check sum is compared.
            while plain.some():
                pass
    except _DAMAGED as error:
        raise ArtifactError(
            f"{name} is truncated, damaged or not a tar.gz ({error}): pack and upload it again"
        ) from error
    return files, size


def _extract(
    name: str,
    plain: _Inflated,
    member: tarfile.TarInfo,
    into: Path,
    on_bytes: Callable[[int], None],
) -> bool:
    """Extract one member; True when it is a regular file."""
    parts = [part for part in member.name.split("/") if part not in {"", "."}]
    if member.name.startswith("/"):
        raise ArtifactError(f"{name}: member {member.name!r} has an absolute path: pack it again")
    for part in parts:
        check_part(member.name, part)
    if member.isdir():
        _directory(name, member, into, parts)
        return False
    if not parts:
        raise ArtifactError(f"{name}: a member without a name: pack it again")
    parent = _directory(name, member, into, parts[:-1])
    path = parent / parts[-1]
    _make_room(name, member, path)
    if member.isreg():
        _write(plain, member, path, on_bytes)
        return True
    if member.issym():
        _symlink(name, member, path, depth=len(parts) - 1)
        return False
    if member.islnk():
        _hard_link(name, member, into, path)
        return False
    raise ArtifactError(
        f"{name}: member {member.name!r} is a device or a FIFO, which no model may bring: "
        "pack it without"
    )


def _directory(name: str, member: tarfile.TarInfo, into: Path, parts: list[str]) -> Path:
    """The directory below `into`, made where it is missing; never reached through a link."""
    path = into
    for part in parts:
        path = path / part
        try:
            path.mkdir(mode=0o755)
        except FileExistsError:
            if not stat.S_ISDIR(path.lstat().st_mode):
                raise ArtifactError(
                    f"{name}: member {member.name!r} lies below {part!r}, which is not a directory"
                ) from None
    return path


def _make_room(name: str, member: tarfile.TarInfo, path: Path) -> None:
    """A later member of the same name replaces an earlier one, but never a directory."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(there.st_mode):
        raise ArtifactError(
            f"{name}: member {member.name!r} is both a directory and something else"
        )
    path.unlink()


def _write(
    plain: _Inflated,
    member: tarfile.TarInfo,
    path: Path,
    on_bytes: Callable[[int], None],
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    left = member.size
    with os.fdopen(os.open(path, flags, 0o644), "wb", buffering=0) as output:
        while left and (part := plain.some(left)):
            left -= len(part)
            on_bytes(len(part))
            while part:
                part = part[output.write(part) :]
        os.fchmod(output.fileno(), (member.mode & 0o755) | 0o444)
    if left:
        raise EOFError(f"{member.name} ends {left:,} bytes before its {member.size:,}")


def _symlink(name: str, member: tarfile.TarInfo, path: Path, depth: int) -> None:
    target = member.linkname
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


def _hard_link(name: str, member: tarfile.TarInfo, into: Path, path: Path) -> None:
    target = into
    parts = [part for part in member.linkname.split("/") if part not in {"", "."}]
    try:
        for index, part in enumerate(parts):
            check_part(member.name, part)
            target = target / part
            mode = target.lstat().st_mode
            if not (stat.S_ISREG(mode) if index == len(parts) - 1 else stat.S_ISDIR(mode)):
                raise FileNotFoundError
        if member.linkname.startswith("/") or not parts:
            raise FileNotFoundError
    except FileNotFoundError:
        raise ArtifactError(
            f"{name}: {member.name!r} is a hard link to {member.linkname!r}, "
            "which is no file of this archive"
        ) from None
    os.link(target, path, follow_symlinks=False)
