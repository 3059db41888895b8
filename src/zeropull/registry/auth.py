"""How a registry lets us in: Basic, or Bearer tokens fetched on its challenge.

Follows the distribution specification's token authentication
(https://distribution.github.io/distribution/spec/auth/token/) and its OAuth2 variant, with the
exceptions that containerd makes for registries that follow them less
(core/remotes/docker/authorizer.go).
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

import msgspec

from zeropull.errors import AccessDenied, Unavailable
from zeropull.registry.addresses import is_loopback, is_plain, split_host
from zeropull.registry.challenges import Challenge, parse_challenges
from zeropull.registry.connecting import Route
from zeropull.registry.http import BUSY, Answer, request, retry_after
from zeropull.resources.sources import RegistryAccess

_DEFAULT_LIFE_S = 60.0  # what the specification says when a token states no life
_MARGIN_S = 10.0  # a token is not used in the last moments of its life
_MAX_LIFE_S = 24 * 3600.0
_MAX_TOKEN_BYTES = 1 << 20
# What token servers that know GET only answer to a POST.
_NO_POST = frozenset({400, 401, 404, 405, 501})


class _TokenAnswer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | str | None = None


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

    def renew(self, repository: str, refused: str | None) -> str | None:
        """After a 403: another header if the credentials have changed, None if they have not.

        ECR says so of passwords that have expired, and helpers have the new one by then.
        """
        if refused is None or not refused.startswith("Basic "):
            return None
        with self._lock:
            header = _basic(self._lookup())
            if header is None or header == refused:
                return None
            self._kept[repository] = _Kept(header, float("inf"))
            return header

    def _fresh(self, repository: str, header: str, refused: str | None) -> _Kept:
        access = self._lookup()
        offered = {challenge.scheme: challenge for challenge in reversed(parse_challenges(header))}
        bearer, basic = offered.get("bearer"), _basic(access)
        if bearer is None and "basic" not in offered:
            raise AccessDenied(
                f"registry {self._host} refuses {repository} and asks for {header[:80]!r}, "
                "which is neither Basic nor Bearer authentication"
            )
        has_basic = "basic" in offered and basic is not None and basic != refused
        if bearer is not None:
            try:
                return self._token(repository, bearer, access, refused)
            except AccessDenied:
                if not has_basic:
                    raise
        if not has_basic or basic is None:
            raise self._denied(repository, access)
        return _Kept(basic, float("inf"))

    def _token(
        self,
        repository: str,
        challenge: Challenge,
        access: RegistryAccess | None,
        refused: str | None,
    ) -> _Kept:
        realm = challenge.parameters.get("realm", "")
        self._check_realm(realm, access)
        query = {"scope": challenge.parameters.get("scope") or f"repository:{repository}:pull"}
        if "service" in challenge.parameters:
            query["service"] = challenge.parameters["service"]
        if access is not None and access.token is not None:
            if refused is None:
                return _Kept(f"Bearer {access.token}", float("inf"))
            answer = self._post(realm, query, access, access.token)
            if answer.status in _NO_POST:
                pair = f"{access.username or ''}:{access.token}"
                answer = self._get(realm, query, access, _encoded(pair))
        else:
            answer = self._get(realm, query, access, _basic(access))
        if answer.status in {400, 401, 403, 404}:
            raise self._denied(repository, access)
        if answer.status != 200:
            raise Unavailable(
                f"the token server of registry {self._host} answers {answer.status}",
                retry_after_s=retry_after(answer.headers.get("retry-after"))
                if answer.status in BUSY
                else None,
            )
        return self._read(answer)

    def _read(self, answer: Answer) -> _Kept:
        try:
            token = msgspec.json.decode(answer.body, type=_TokenAnswer)
        except msgspec.DecodeError as error:
            raise Unavailable(f"the token server of {self._host} answers nonsense") from error
        value = token.token or token.access_token
        if not value:
            raise Unavailable(f"the token server of registry {self._host} gave no token")
        try:
            life_s = float(token.expires_in or 0)
        except ValueError:
            life_s = 0.0
        if not 0 <= life_s <= _MAX_LIFE_S:
            life_s = _MAX_LIFE_S if life_s > 0 else 0.0
        kept_s = max(life_s, _DEFAULT_LIFE_S) - _MARGIN_S
        return _Kept(f"Bearer {value}", time.monotonic() + kept_s)

    def _check_realm(self, realm: str, access: RegistryAccess | None) -> None:
        """A password is sent to HTTPS servers, and in the clear only to the registry's own host
        where that is spoken to in the clear, too."""
        try:
            parts = urlsplit(realm)
            host = parts.hostname or ""
        except ValueError:
            parts, host = urlsplit(""), ""
        if parts.scheme == "https" and host:
            return
        own = split_host(self._host)
        is_here = host == own or (is_loopback(own) and is_loopback(host))
        has_secret = access is not None and bool(access.password or access.token)
        if parts.scheme == "http" and host and is_plain(self._host, access):
            if is_here or not has_secret:
                return
            raise AccessDenied(
                f"registry {self._host} asks to send its password to {realm[:200]!r} without "
                "encryption, to another host than its own: https is needed for that"
            )
        raise AccessDenied(
            f"registry {self._host} asks for a token from {realm[:200]!r}: https is needed"
        )

    def _get(
        self,
        realm: str,
        query: dict[str, str],
        access: RegistryAccess | None,
        authorization: str | None,
    ) -> Answer:
        headers = {"User-Agent": self._user_agent, "Accept": "application/json"}
        if authorization is not None:
            headers["Authorization"] = authorization
        url = f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(query)}"
        route = Route.of(self._host, access)
        return request("GET", url, headers, route=route, max_bytes=_MAX_TOKEN_BYTES)

    def _post(
        self, realm: str, query: dict[str, str], access: RegistryAccess, token: str
    ) -> Answer:
        headers = {
            "User-Agent": self._user_agent,
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": "zeropull"}
        body = urlencode(form | query).encode()
        route = Route.of(self._host, access)
        return request("POST", realm, headers, route=route, body=body, max_bytes=_MAX_TOKEN_BYTES)

    def _denied(self, repository: str, access: RegistryAccess | None) -> AccessDenied:
        if access is None or (access.username is None and access.token is None):
            remedy = "log in with `docker login`, or add it to the configuration"
            why = access.problem if access is not None and access.problem else remedy
            return AccessDenied(
                f"registry {self._host} wants credentials for {repository}, and there are none: "
                f"{why}"
            )
        who = f"user {access.username}" if access.username else "the configured token"
        return AccessDenied(
            f"registry {self._host} refuses {who} for {repository}: "
            "check the name, the password and the rights to pull, or log in again"
        )


def _basic(access: RegistryAccess | None) -> str | None:
    if access is None or access.username is None or access.password is None:
        return None
    return _encoded(f"{access.username}:{access.password}")


def _encoded(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode()
