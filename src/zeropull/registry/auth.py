"""How a registry lets us in: Basic, or Bearer tokens fetched on its challenge.

Follows the distribution specification's token authentication
(https://distribution.github.io/distribution/spec/auth/token/) and its OAuth2 variant.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

import msgspec

from zeropull.errors import AccessDenied, Unavailable
from zeropull.registry.http import is_loopback, request, split_host
from zeropull.resources.sources import RegistryAccess

_CHALLENGE = re.compile(r"\s*(Bearer|Basic)\b(.*)", re.IGNORECASE)
_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"([^"]*)"|([^\s,]+))')
_DEFAULT_LIFE_S = 60.0  # what the specification says when a token states no life
_MARGIN_S = 10.0  # a token is not used in the last moments of its life
_MAX_TOKEN_BYTES = 1 << 20


class _TokenAnswer(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float = _DEFAULT_LIFE_S


@dataclass(slots=True)
class _Kept:
    header: str
    until_s: float


class Authorizer:
    """The credentials of one registry host and the tokens got with them. Safe for threads.

    `lookup` is asked again whenever credentials did not work, since some of them expire.
    """

    def __init__(
        self, host: str, lookup: Callable[[], RegistryAccess | None], user_agent: str
    ) -> None:
        self._host = host
        self._lookup = lookup
        self._user_agent = user_agent
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}

    def header(self, repository: str) -> str | None:
        """The Authorization header that worked for this repository, while it is valid."""
        with self._lock:
            kept = self._kept.get(repository)
            return kept.header if kept and kept.until_s > time.monotonic() else None

    def keep(self, repository: str, header: str) -> None:
        """Begin with a header that another process was given."""
        with self._lock:
            self._kept[repository] = _Kept(header, time.monotonic() + _DEFAULT_LIFE_S)

    def answer(self, repository: str, challenge: str, refused: str | None) -> str:
        """The header that answers a 401's `WWW-Authenticate`; `refused` is the one that failed.

        Raises:
            AccessDenied: there are no credentials, or they do not work.
            Unavailable: the token server does not answer.
        """
        with self._lock:
            kept = self._kept.get(repository)
            if kept is not None and kept.header != refused and kept.until_s > time.monotonic():
                return kept.header  # another thread has renewed it meanwhile
            fresh = self._fresh(repository, challenge, refused)
            self._kept[repository] = fresh
            return fresh.header

    def _fresh(self, repository: str, challenge: str, refused: str | None) -> _Kept:
        access = self._lookup()
        match = _CHALLENGE.match(challenge)
        if match is None:
            raise AccessDenied(
                f"registry {self._host} refuses {repository} and asks for {challenge[:80]!r}, "
                "which is neither Basic nor Bearer authentication"
            )
        if match[1].lower() == "basic":
            header = _basic(access)
            if header is None or header == refused:
                raise self._denied(repository, access)
            return _Kept(header, float("inf"))
        parameters = {
            name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(match[2])
        }
        return self._token(repository, parameters, access, refused)

    def _token(
        self,
        repository: str,
        parameters: dict[str, str],
        access: RegistryAccess | None,
        refused: str | None,
    ) -> _Kept:
        realm = parameters.get("realm", "")
        try:
            parts = urlsplit(realm)
        except ValueError:
            parts = urlsplit("")
        # A registry elsewhere must not have us ask services of this machine's loopback.
        both_here = is_loopback(split_host(self._host)) and is_loopback(parts.hostname or "")
        plain_allowed = both_here or (access and access.plain_http)
        if parts.scheme != "https" and not (parts.scheme == "http" and plain_allowed):
            raise AccessDenied(
                f"registry {self._host} asks for a token from {realm[:200]!r}: https is needed"
            )
        query = {"scope": parameters.get("scope") or f"repository:{repository}:pull"}
        if "service" in parameters:
            query["service"] = parameters["service"]
        headers = {"User-Agent": self._user_agent, "Accept": "application/json"}
        if access is not None and access.token is not None:
            direct = f"Bearer {access.token}"
            if refused is None:
                return _Kept(direct, float("inf"))
            form = {"grant_type": "refresh_token", "refresh_token": access.token}
            form |= query | {"client_id": "zeropull"}
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            answer = request(
                "POST", realm, headers, body=urlencode(form).encode(), max_bytes=_MAX_TOKEN_BYTES
            )
        else:
            if (basic := _basic(access)) is not None:
                headers["Authorization"] = basic
            separator = "&" if parts.query else "?"
            url = f"{realm}{separator}{urlencode(query)}"
            answer = request("GET", url, headers, max_bytes=_MAX_TOKEN_BYTES)
        if answer.status in {400, 401, 403, 404}:
            raise self._denied(repository, access)
        if answer.status != 200:
            raise Unavailable(f"the token server of registry {self._host} answers {answer.status}")
        try:
            token = msgspec.json.decode(answer.body, type=_TokenAnswer)
        except msgspec.DecodeError as error:
            raise Unavailable(f"the token server of {self._host} answers nonsense") from error
        value = token.token or token.access_token
        if not value:
            raise Unavailable(f"the token server of registry {self._host} gave no token")
        life_s = max(token.expires_in, _DEFAULT_LIFE_S) - _MARGIN_S
        return _Kept(f"Bearer {value}", time.monotonic() + life_s)

    def _denied(self, repository: str, access: RegistryAccess | None) -> AccessDenied:
        if access is None or (access.username is None and access.token is None):
            return AccessDenied(
                f"registry {self._host} wants credentials for {repository}, and there are none: "
                "log in with `docker login`, or add it to the configuration"
            )
        who = f"user {access.username}" if access.username else "the configured token"
        return AccessDenied(
            f"registry {self._host} refuses {who} for {repository}: "
            "check the name, the password and the rights to pull, or log in again"
        )


def _basic(access: RegistryAccess | None) -> str | None:
    if access is None or access.username is None or access.password is None:
        return None
    pair = f"{access.username}:{access.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()
