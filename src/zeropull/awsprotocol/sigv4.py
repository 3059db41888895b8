"""Verify AWS Signature Version 4: the Authorization header, or a presigned query.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
The payload's hash is always that of the body received: `x-amz-content-sha256` is only a header.
A session token takes no part: keys here are permanent, and a token that lingers in the client's
environment is signed along and ignored.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from calendar import timegm
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from time import gmtime, strftime
from typing import NoReturn, Protocol, TypeVar
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes

from zeropull.awsprotocol.faults import SignatureError

ALGORITHM = "AWS4-HMAC-SHA256"
ALLOWED_SKEW_S = 300
MAX_EXPIRES_S = 604_800
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

_PLAIN_PATH = re.compile(
    r"/(?:[A-Za-z0-9_~-][A-Za-z0-9_.~-]*/)*(?:[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)?"
)
_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z", re.ASCII)
_SPACES = re.compile(r"[ \t]+")


class SigningKey(Protocol):
    """What of an access key is needed here."""

    @property
    def access_key_id(self) -> str: ...

    @property
    def secret_access_key(self) -> str: ...


K = TypeVar("K", bound=SigningKey)


@dataclass(frozen=True, slots=True)
class _Claim:
    """What the request says of its own signature."""

    credential: str
    signed_headers: str
    signature: str
    date: str
    expires_s: int | None = None  # presigned only


def verify(
    method: str,
    raw_path: str | bytes,
    query: str | bytes,
    headers: Iterable[tuple[bytes, bytes]],
    body_sha256: str,
    keys: Mapping[str, K],
    *,
    region: str | None,
    service: str,
    now_s: float,
    allowed_skew_s: float = ALLOWED_SKEW_S,
) -> K:
    """The key that signed the request.

    `raw_path` (without query) and `query` (without `?`) are as they came over the wire; `headers`
    in any case and order. `region` None accepts any region of the scope.

    Raises:
        SignatureError: with AWS's code, text and status.
    """
    path = raw_path.decode("latin-1") if isinstance(raw_path, bytes) else raw_path
    query_text = query.decode("latin-1") if isinstance(query, bytes) else query
    by_name: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip()
        by_name[name] = f"{by_name[name]},{value}" if name in by_name else value
    authorization = by_name.get("authorization")
    if authorization is not None:
        claim = _claim_of_header(authorization, by_name)
    elif "X-Amz-Algorithm=" in query_text:
        claim = _claim_of_query(query_text)
    else:
        raise SignatureError(
            "MissingAuthenticationTokenException", "Missing Authentication Token", 403
        )
    access_key_id, scope_date, scope_region, scope = _check_scope(claim, region, service)
    _check_time(claim, now_s, allowed_skew_s)
    key = keys.get(access_key_id)
    if key is None:
        raise SignatureError(
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
            403,
        )
    canonical = "\n".join(
        (
            method,
            _canonical_path(path),
            _canonical_query(query_text, presigned=claim.expires_s is not None),
            _canonical_headers(claim.signed_headers, by_name),
            claim.signed_headers,
            body_sha256,
        )
    )
    hashed = hashlib.sha256(canonical.encode("latin-1", "replace")).hexdigest()
    to_sign = f"{ALGORITHM}\n{claim.date}\n{scope}\n{hashed}"
    signing_key = _signing_key(key.secret_access_key, scope_date, scope_region, service)
    expected = hmac.digest(signing_key, to_sign.encode(), "sha256").hex()
    if not hmac.compare_digest(expected, claim.signature):
        raise SignatureError(
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided. "
            "Check your AWS Secret Access Key and signing method. Consult the service "
            "documentation for details.",
            403,
        )
    return key


@lru_cache(maxsize=1024)
def _signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    """Good for a day of one key: four HMACs that need not be made per request."""
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _claim_of_header(authorization: str, headers: Mapping[str, str]) -> _Claim:
    algorithm, _, rest = authorization.partition(" ")
    if algorithm != ALGORITHM:
        _incomplete(f"Unsupported AWS 'algorithm': '{algorithm[:64]}'.")
    fields: dict[str, str] = {}
    for part in rest.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals:
            _incomplete(
                "Invalid key=value pair (missing equal-sign) in Authorization header: "
                f"'{name[:64]}'."
            )
        fields[name] = value
    date = headers.get("x-amz-date") or headers.get("date", "")
    missing = [
        f"Authorization header requires '{name}' parameter."
        for name in ("Credential", "Signature", "SignedHeaders")
        if not fields.get(name)
    ]
    if not date:
        missing.append(
            "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."
        )
    if missing:
        _incomplete(" ".join(missing))
    return _Claim(fields["Credential"], fields["SignedHeaders"], fields["Signature"], date)


def _claim_of_query(query: str) -> _Claim:
    fields: dict[str, str] = {}
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name.startswith("X-Amz-"):
            if name in fields:
                _incomplete(f"The query has '{name}' twice.")
            fields[name] = unquote_to_bytes(value).decode("latin-1")
    missing = [
        f"AWS query-string parameters must include '{name}'."
        for name in ("X-Amz-Credential", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Signature")
        if not fields.get(name)
    ]
    if missing:
        _incomplete(" ".join(missing))
    if fields["X-Amz-Algorithm"] != ALGORITHM:
        _incomplete(f"Unsupported AWS 'algorithm': '{fields['X-Amz-Algorithm'][:64]}'.")
    expires = fields.get("X-Amz-Expires", "")
    if not (expires.isascii() and expires.isdigit() and 1 <= int(expires[:9]) <= MAX_EXPIRES_S):
        _incomplete(f"X-Amz-Expires must be between 1 and {MAX_EXPIRES_S} seconds.")
    return _Claim(
        fields["X-Amz-Credential"],
        fields["X-Amz-SignedHeaders"],
        fields["X-Amz-Signature"],
        fields["X-Amz-Date"],
        int(expires),
    )


def _check_scope(claim: _Claim, region: str | None, service: str) -> tuple[str, str, str, str]:
    access_key_id, _, scope = claim.credential.partition("/")
    parts = scope.split("/")
    if len(parts) != 4 or not access_key_id:
        _incomplete(
            "Credential must have exactly 5 slash-delimited elements, e.g. "
            "keyid/date/region/service/term."
        )
    scope_date, scope_region, scope_service, terminator = parts
    complaints = []
    if region is not None and scope_region != region:
        complaints.append(
            f"Credential should be scoped to a valid Region, not '{scope_region[:64]}'."
        )
    if scope_service != service:
        complaints.append(f"Credential should be scoped to correct service: '{service}'.")
    if terminator != "aws4_request":
        complaints.append(
            "Credential should be scoped with a valid terminator: 'aws4_request', "
            f"not '{terminator[:64]}'."
        )
    if scope_date != claim.date[:8]:
        complaints.append(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from "
            f"HTTP: '{scope_date[:16]}' != '{claim.date[:8]}', from '{claim.date[:32]}'."
        )
    if complaints:
        raise SignatureError("InvalidSignatureException", " ".join(complaints), 403)
    return access_key_id, scope_date, scope_region, scope


def _check_time(claim: _Claim, now_s: float, skew_s: float) -> None:
    date = _DATE.fullmatch(claim.date)
    if date is None:
        _incomplete(
            "Date must be in ISO-8601 'basic format'. Got "
            f"'{claim.date[:64]}'. See http://en.wikipedia.org/wiki/ISO_8601"
        )
    year, month, day, hour, minute, second = map(int, date.groups())
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 61):
        _incomplete(f"Date must be a valid time. Got '{claim.date}'.")
    signed_s = timegm((year, month, day, hour, minute, second))
    if signed_s > now_s + skew_s:
        raise SignatureError(
            "InvalidSignatureException",
            f"Signature not yet current: {claim.date} is still later than "
            f"{_iso(now_s + skew_s)} ({_iso(now_s)} + {_minutes(skew_s)}.)",
            403,
        )
    allowed_s = skew_s if claim.expires_s is None else claim.expires_s
    if signed_s < now_s - allowed_s:
        raise SignatureError(
            "InvalidSignatureException",
            f"Signature expired: {claim.date} is now earlier than "
            f"{_iso(now_s - allowed_s)} ({_iso(now_s)} - {_minutes(allowed_s)}.)",
            403,
        )


def _canonical_path(path: str) -> str:
    """Dot segments and empty segments removed, then encoded once more (the path is encoded)."""
    if _PLAIN_PATH.fullmatch(path):
        return path
    output: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if output:
                output.pop()
        elif segment not in ("", "."):
            output.append(segment)
    tail = "/" if output and path.endswith("/") else ""
    return quote("/" + "/".join(output) + tail, safe="/~", encoding="latin-1", errors="replace")


def _canonical_query(query: str, *, presigned: bool) -> str:
    if not query:
        return ""
    pairs = []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if part and not (presigned and name == "X-Amz-Signature"):
            pairs.append((_encoded(name), _encoded(value)))
    pairs.sort()
    return "&".join(f"{name}={value}" for name, value in pairs)


def _canonical_headers(signed_headers: str, headers: Mapping[str, str]) -> str:
    names = signed_headers.split(";")
    if "host" not in names:
        _incomplete("'Host' must be a 'SignedHeader' in the AWS Authorization.")
    # What changes the meaning of a call must be signed: X-Amz-Target names the operation.
    for name in headers:
        if name.startswith("x-amz-") and name not in names:
            _incomplete(f"'{name}' must be a 'SignedHeader' in the AWS Authorization.")
    lines = []
    for name in names:
        value = headers.get(name, "")
        if "  " in value or "\t" in value:
            value = _SPACES.sub(" ", value)
        lines.append(f"{name}:{value}\n")
    return "".join(lines)


def _encoded(text: str) -> str:
    return quote_from_bytes(unquote_to_bytes(text.encode("latin-1")), safe="-_.~")


def _iso(time_s: float) -> str:
    return strftime("%Y%m%dT%H%M%SZ", gmtime(time_s))


def _minutes(time_s: float) -> str:
    return f"{time_s / 60:g} min"


def _incomplete(message: str) -> NoReturn:
    raise SignatureError("IncompleteSignatureException", message, 403)
