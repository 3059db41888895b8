"""What SageMaker lets a key become under the model directory. No I/O.

ModelDataSource's rules: parts that are empty, blank, `.` or `..`, hold NUL or exceed 255 bytes fail
the deployment, and so does a name that is both a file and a directory.
"""

from __future__ import annotations

from collections.abc import Iterable

from zeropull.errors import ArtifactError

MAX_NAME_BYTES = 255


def object_name(key: str) -> str:
    """The file name of a single object: the last part of its key."""
    name = key.rpartition("/")[2]
    if not name:
        raise ArtifactError(f"key {key!r} ends in a slash: it names a folder, not an object")
    check_part(key, name)
    return name


def relative_names(prefix: str, keys: Iterable[str]) -> dict[str, str]:
    """Key -> path under the model directory, for everything under a prefix.

    Raises:
        ArtifactError: naming the key and the rule.
    """
    names: dict[str, str] = {}
    files: set[str] = set()
    folders: set[str] = set()
    for key in keys:
        # Stores list the folder "objects" of consoles without their last slash.
        if key == prefix.rstrip("/") or key.endswith("/"):
            folder = key.rstrip("/") + "/"
            raise ArtifactError(f"key {folder!r} is a folder object, no file: delete it")
        if not key.startswith(prefix):
            continue
        relative = key[len(prefix) :]
        parts = relative.split("/")
        for part in parts:
            check_part(key, part)
        files.add(relative)
        folders |= {"/".join(parts[:count]) for count in range(1, len(parts))}
        names[key] = relative
    if both := sorted(files & folders):
        raise ArtifactError(
            f"{prefix}{both[0]} is both an object and a folder of others, "
            "which no file system can hold: rename one of them"
        )
    return names


def check_part(key: str, part: str) -> None:
    """Refuse a part of a path that is unsafe or that SageMaker refuses."""
    if not part.strip() or part in {".", ".."} or "\0" in part:
        raise ArtifactError(f"{key!r} has the part {part!r}, which is no file name: rename it")
    if len(part.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
        raise ArtifactError(f"{key[:80]!r}… has a part of more than {MAX_NAME_BYTES} bytes")
