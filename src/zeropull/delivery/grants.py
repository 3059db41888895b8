"""Who may have which endpoint's blocks: one small file for each credential that is valid.

The control plane makes a grant when it launches an instance and takes it away when the instance is
gone. A file is named after the SHA-256 of its token, so that the folder gives no token away. The
source looks into the folder for each request: a grant that is taken away is worthless at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zeropull.linux.files import replace_file, sync_folder

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Grant:
    """One instance may read the generations of one endpoint."""

    endpoint_uid: str
    instance_id: str


class Grants:
    """The grants of one source, in one folder. Every call reads or writes the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, grant: Grant) -> str:
        """A new token for the grant. It is on the disk when the call returns."""
        token = secrets.token_urlsafe(32)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._file(token), msgspec.json.encode(grant))
        return token

    def find(self, token: str) -> Grant | None:
        """What the token is good for; None when it is good for nothing."""
        if not _TOKEN.fullmatch(token):
            return None
        try:
            return msgspec.json.decode(self._file(token).read_bytes(), type=Grant)
        except (OSError, msgspec.DecodeError):
            return None

    def revoke(self, instance_id: str) -> int:
        """Take away every grant of the instance; how many there were. Idempotent."""
        return self._remove(lambda grant: grant.instance_id == instance_id)

    def keep_only(self, instance_ids: frozenset[str]) -> int:
        """Take away the grants of all other instances, and files that are no grants."""
        return self._remove(lambda grant: grant.instance_id not in instance_ids, damaged=True)

    def _remove(self, goes: Callable[[Grant], bool], *, damaged: bool = False) -> int:
        removed = 0
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                try:
                    remove = goes(msgspec.json.decode(path.read_bytes(), type=Grant))
                except (OSError, msgspec.DecodeError):
                    remove = damaged
                if remove:
                    path.unlink(missing_ok=True)
                    removed += 1
            sync_folder(self._folder)
        return removed

    def _file(self, token: str) -> Path:
        return self._folder / hashlib.sha256(token.encode()).hexdigest()
