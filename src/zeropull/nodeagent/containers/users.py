"""USER of an image resolved against the image's own /etc/passwd and /etc/group (OCI image-spec,
"config.User": user, uid, user:group, uid:gid, uid:group, user:gid)."""

from __future__ import annotations

from dataclasses import dataclass

from zeropull.errors import ImageError

_MAX_ID = 2**31 - 1  # what runc accepts


@dataclass(frozen=True, slots=True)
class User:
    uid: int
    gid: int
    additional_gids: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def resolve_user(value: str, passwd: str, group: str) -> User:
    """`value` is the image's USER ("" = root); the two texts are "" where the image has none.

    A group that is named explicitly replaces the user's groups; otherwise the user gets its main
    group and every group that lists it as a member, as Docker does.

    Raises:
        ImageError: a name that the image's files do not have, or an id out of range.
    """
    user_part, _, group_part = value.partition(":")
    accounts, groups = _accounts(passwd), _groups(group)
    account = _find_account(user_part or "0", accounts)
    if account is None:
        if not _is_number(user_part or "0"):
            raise ImageError(
                f"the image's USER {value[:80]!r} names {user_part[:80]!r}, "
                "which is not in its /etc/passwd"
            )
        account = _Account("", _checked_id(user_part or "0", value), 0, "/")
    if group_part:
        return User(account.uid, _group_id(group_part, groups, value), (), account.home)
    additional = tuple(
        sorted({g.gid for g in groups if account.name and account.name in g.members})
    )
    return User(account.uid, account.gid, additional, account.home)


def _find_account(part: str, accounts: list[_Account]) -> _Account | None:
    for account in accounts:
        if account.name == part:
            return account
    if _is_number(part):
        return next((account for account in accounts if account.uid == int(part)), None)
    return None


def _group_id(part: str, groups: list[_Group], value: str) -> int:
    for group in groups:
        if group.name == part:
            return group.gid
    if _is_number(part):
        return _checked_id(part, value)
    raise ImageError(
        f"the image's USER {value[:80]!r} names the group {part[:80]!r}, "
        "which its /etc/group does not have"
    )


def _checked_id(part: str, value: str) -> int:
    number = int(part)
    if number > _MAX_ID:
        raise ImageError(f"the image's USER {value[:80]!r} is out of range: at most {_MAX_ID}")
    return number


def _is_number(text: str) -> bool:
    """Digits that int() takes: it refuses superscripts, and numbers of thousands of digits."""
    return text.isascii() and text.isdigit() and len(text) <= 20


def _is_id(text: str) -> bool:
    return _is_number(text) and int(text) <= _MAX_ID


def _accounts(passwd: str) -> list[_Account]:
    found = []
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and _is_id(fields[2]) and _is_id(fields[3]):
            found.append(
                _Account(fields[0], int(fields[2]), int(fields[3]), fields[5].strip() or "/")
            )
    return found


def _groups(group: str) -> list[_Group]:
    found = []
    for line in group.splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and _is_id(fields[2]):
            members = tuple(name.strip() for name in fields[3].split(",") if name.strip())
            found.append(_Group(fields[0], int(fields[2]), members))
    return found
