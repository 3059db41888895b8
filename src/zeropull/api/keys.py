"""Accounts and access keys: those of the first start, and those that requests are checked with."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from zeropull.errors import InvalidInput
from zeropull.linux.files import replace_file
from zeropull.resources.accounts import Account, StoredKey
from zeropull.statestore import Store

_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


def ensure_default_key(store: Store, account: str, now_s: float) -> tuple[StoredKey, bool]:
    """The oldest enabled key of `account`; made, with the account, when there is none.

    The second value tells whether it was made now. Idempotent.
    """
    if not (len(account) == 12 and account.isascii() and account.isdigit()):
        raise InvalidInput(f"{account!r} is not an account: expected 12 digits")
    with store.transaction():
        if store.get(Account, account) is None:
            store.put(Account(account, "default", now_s))
        found = [key for key in list_keys(store, account) if key.enabled]
        if found:
            return found[0], False
        return create_key(store, account, now_s), True


def create_key(store: Store, account: str, now_s: float) -> StoredKey:
    """A new key of an account that exists.

    Raises:
        NotFound: there is no such account.
    """
    with store.transaction():
        store.require(Account, account)
        identifier = "AKIA" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(16))
        key = StoredKey(identifier, secrets.token_urlsafe(30), account, now_s)
        store.put(key, expected_version=0)
    return key


def list_keys(store: Store, account: str | None = None) -> list[StoredKey]:
    """Keys, oldest first; of all accounts when none is given."""
    found = store.select(StoredKey) if account is None else store.select(StoredKey, account=account)
    return sorted(
        (stored.document for stored in found), key=lambda k: (k.created_s, k.access_key_id)
    )


def write_credentials_file(path: Path, key: StoredKey, region: str) -> None:
    """An AWS credentials file (0600) with `key` as its default profile, replaced atomically when
    its content is another: on a full disk, the file of before stays.

    Raises:
        OSError: it cannot be written.
    """
    text = (
        "[default]\n"
        f"aws_access_key_id = {key.access_key_id}\n"
        f"aws_secret_access_key = {key.secret_access_key}\n"
        f"region = {region}\n"
    )
    try:
        is_written = path.read_bytes() == text.encode()
    except OSError:
        is_written = False
    if not is_written:
        replace_file(path, text)


class KeyRing:
    """The enabled keys by ID, read again when one has changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._revision = -1
        self._keys: Mapping[str, StoredKey] = {}

    def current(self) -> Mapping[str, StoredKey]:
        revision = self._store.revision_of(StoredKey.kind)
        if revision != self._revision:
            self._keys = {k.access_key_id: k for k in list_keys(self._store) if k.enabled}
            self._revision = revision
        return self._keys
