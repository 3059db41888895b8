"""What a request says of its own signature: in its Authorization header, or in a presigned query.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-authentication-methods.html
The texts of refusals are the same as on AWS.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import NoReturn
from urllib.parse import unquote_to_bytes

from zeropull.awsprotocol.faults import SignatureError

ALGORITHM = b"AWS4-HMAC-SHA256"
MAX_EXPIRES_S = 604_800
MAX_REMEMBERED = 1024  # claims of one second each

_DATE = re.compile(rb"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z")


class Claim:
    """A claim whose scope has been checked; only its signature and its time have not.

    `template` makes the canonical headers of the values of the signed ones, which `values_of` takes
    from all headers by lower-case name.
    """

    __slots__ = (
        "access_key_id",
        "date",
        "expires_s",
        "names",
        "scope_date",
        "scope_region",
        "signature",
        "signed_headers",
        "signed_s",
        "template",
        "to_sign_start",
        "values_of",
    )

    def __init__(
        self,
        credential: bytes,
        signed_headers: bytes,
        signature: bytes,
        date: bytes,
        expires_s: int | None,
        *,
        region: str | None,
        service: str,
    ) -> None:
        access_key_id, _, scope = credential.partition(b"/")
        self.scope_date, self.scope_region = _check_scope(
            access_key_id, scope, date, region, service
        )
        self.access_key_id = access_key_id.decode("latin-1")
        self.date = date.decode("latin-1")
        self.signed_s = _time_of(date)
        self.expires_s = expires_s  # presigned only
        self.signature = signature
        self.signed_headers = signed_headers
        names = signed_headers.split(b";")
        if b"host" not in names:
            incomplete("'Host' must be a 'SignedHeader' in the AWS Authorization.")
        self.names = frozenset(names)
        self.template = b"".join(b"%b:%%b\n" % name.replace(b"%", b"%%") for name in names)
        self.values_of: Callable[[Mapping[bytes, bytes]], object] = itemgetter(*names)
        self.to_sign_start = b"%b\n%b\n%b\n" % (ALGORITHM, date, scope)


# Authorization up to the signature, date, region, service.
_ClaimKey = tuple[bytes, bytes, str | None, str]


class RememberedClaims:
    """The newest claims, which are the same for all requests that one client signs in one second.

    Only claims of a verified request are kept, so that nobody without a key can fill it.
    """

    __slots__ = ("_claims", "_limit", "get")

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._claims: dict[_ClaimKey, Claim] = {}
        self._limit = limit
        self.get = self._claims.get  # it is on the path of every invocation

    def __len__(self) -> int:
        return len(self._claims)

    def keep(self, key: _ClaimKey, claim: Claim) -> None:
        """Of a request that has been verified. The oldest goes when there are too many."""
        if len(self._claims) >= self._limit:
            del self._claims[next(iter(self._claims))]
        self._claims[key] = claim


def claim_of_header(
    authorization: bytes, date: bytes, *, region: str | None, service: str
) -> Claim:
    """Of the Authorization header, and of X-Amz-Date or else Date (b"" = there is none).

    Raises:
        SignatureError: it is malformed, or not for this region or service.
    """
    algorithm, _, rest = authorization.partition(b" ")
    if algorithm != ALGORITHM:
        incomplete(f"Unsupported AWS 'algorithm': '{_text(algorithm)}'.")
    fields: dict[bytes, bytes] = {}
    for part in rest.split(b","):
        name, equals, value = part.strip().partition(b"=")
        if not equals:
            incomplete(
                "Invalid key=value pair (missing equal-sign) in Authorization header: "
                f"'{_text(name)}'."
            )
        if name in fields:
            incomplete(f"The Authorization header has '{_text(name)}' twice.")
        fields[name] = value
    missing = [
        f"Authorization header requires '{name.decode()}' parameter."
        for name in (b"Credential", b"Signature", b"SignedHeaders")
        if not fields.get(name)
    ]
    if not date:
        missing.append(
            "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."
        )
    if missing:
        incomplete(" ".join(missing))
    return Claim(
        fields[b"Credential"],
        fields[b"SignedHeaders"],
        fields[b"Signature"],
        date,
        None,
        region=region,
        service=service,
    )


def claim_of_query(query: bytes, *, region: str | None, service: str) -> Claim:
    """Of a presigned query.

    Raises:
        SignatureError: it is malformed, or not for this region or service.
    """
    fields: dict[str, bytes] = {}
    for part in query.split(b"&"):
        raw_name, _, value = part.partition(b"=")
        if raw_name.startswith(b"X-Amz-"):
            name = raw_name.decode("latin-1")
            if name in fields:
                incomplete(f"The query has '{name[:64]}' twice.")
            fields[name] = unquote_to_bytes(value)
    missing = [
        f"AWS query-string parameters must include '{name}'."
        for name in ("X-Amz-Credential", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Signature")
        if not fields.get(name)
    ]
    if missing:
        incomplete(" ".join(missing))
    if fields["X-Amz-Algorithm"] != ALGORITHM:
        incomplete(f"Unsupported AWS 'algorithm': '{_text(fields['X-Amz-Algorithm'])}'.")
    expires = fields.get("X-Amz-Expires", b"")
    if not (expires.isdigit() and 1 <= int(expires[:9]) <= MAX_EXPIRES_S):
        incomplete(f"X-Amz-Expires must be between 1 and {MAX_EXPIRES_S} seconds.")
    return Claim(
        fields["X-Amz-Credential"],
        fields["X-Amz-SignedHeaders"],
        fields["X-Amz-Signature"],
        fields["X-Amz-Date"],
        int(expires),
        region=region,
        service=service,
    )


def incomplete(message: str) -> NoReturn:
    raise SignatureError("IncompleteSignatureException", message, 403)


def _check_scope(
    access_key_id: bytes, scope: bytes, date: bytes, region: str | None, service: str
) -> tuple[str, str]:
    """(date, region) of the scope."""
    parts = scope.decode("latin-1").split("/")
    if len(parts) != 4 or not access_key_id:
        incomplete(
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
    day = _text(date[:8])
    if scope_date != day:
        complaints.append(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from "
            f"HTTP: '{scope_date[:16]}' != '{day}', from '{_text(date[:32])}'."
        )
    if complaints:
        raise SignatureError("InvalidSignatureException", " ".join(complaints), 403)
    return scope_date, scope_region


def _time_of(date: bytes) -> int:
    """Unix time."""
    found = _DATE.fullmatch(date)
    if found is None:
        incomplete(
            "Date must be in ISO-8601 'basic format'. Got "
            f"'{_text(date)}'. See http://en.wikipedia.org/wiki/ISO_8601"
        )
    year, month, day, hour, minute, second = map(int, found.groups())
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 61):
        incomplete(f"Date must be a valid time. Got '{_text(date)}'.")
    return timegm((year, month, day, hour, minute, second))


def _text(value: bytes) -> str:
    return value[:64].decode("latin-1")
