"""Verify AWS Signature Version 4: the Authorization header, or a presigned query.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
The payload's hash is computed from the received body; `x-amz-content-sha256` is only a header.
A session token takes no part: keys here are permanent, and a token that lingers in the client's
environment is signed along and ignored.

It is on the path of every invocation. What is remembered between requests is only ever a pure
function of what it is looked up by; key, time, headers and body are checked anew for each.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from time import gmtime, strftime
from typing import Protocol, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

from zeropull.awsprotocol.faults import SignatureError
from zeropull.awsprotocol.sigv4_claims import (
    Claim,
    RememberedClaims,
    claim_of_header,
    claim_of_query,
    incomplete,
)

ALLOWED_SKEW_S = 300
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
MAX_PATHS = 128

_empty = hashlib.sha256()
_SIGNATURE_LENGTH = 64  # hex digits
_PLAIN_PATH = re.compile(
    rb"/(?:[A-Za-z0-9_~-][A-Za-z0-9_.~-]*/)*(?:[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)?"
)
_CREDENTIAL = re.compile(rb"Credential=([^/,&]+)/")
_SPACES = re.compile(rb"[ \t]+")


class SigningKey(Protocol):
    """What of an access key is needed here."""

    @property
    def access_key_id(self) -> str: ...

    @property
    def secret_access_key(self) -> str: ...


K = TypeVar("K", bound=SigningKey)


class SignedHead:
    """What a claim and the head of a request come to, whatever the signature and the body are."""

    __slots__ = ("_canonical", "_claim", "_service")

    def __init__(self, claim: Claim, canonical: bytes, service: str) -> None:
        """`canonical`: the canonical request up to the hash of its payload."""
        self._claim = claim
        self._canonical = hashlib.sha256(canonical)
        self._service = service

    def covers(self, *names: bytes) -> bool:
        """Whether one of these headers is signed."""
        return not self._claim.names.isdisjoint(names)

    def verify(
        self,
        signature: bytes,
        body_sha256: str,
        keys: Mapping[str, K],
        *,
        now_s: float,
        allowed_skew_s: float = ALLOWED_SKEW_S,
    ) -> K:
        """The key that signed a request with this head.

        Raises:
            SignatureError: with AWS's code, text and status.
        """
        key = _key_of(self._claim, keys, now_s, allowed_skew_s)
        self._compare(key, signature, body_sha256)
        return key

    def _compare(self, key: SigningKey, signature: bytes, body_sha256: str) -> None:
        claim = self._claim
        signed = self._canonical.copy()
        signed.update(body_sha256.encode())
        inner, outer = _signing_hmac(
            key.secret_access_key, claim.scope_date, claim.scope_region, self._service
        )
        inner, outer = inner.copy(), outer.copy()
        inner.update(claim.to_sign_start + signed.hexdigest().encode())
        outer.update(inner.digest())
        expected = outer.hexdigest().encode()
        if not hmac.compare_digest(expected, signature):
            raise SignatureError(
                "InvalidSignatureException",
                "The request signature we calculated does not match the signature you provided. "
                "Check your AWS Secret Access Key and signing method. Consult the service "
                "documentation for details.",
                403,
            )


def verify(
    method: str | bytes,
    raw_path: str | bytes,
    query: str | bytes,
    headers: Sequence[tuple[bytes, bytes]],
    body_sha256: str,
    keys: Mapping[str, K],
    *,
    region: str | None,
    service: str,
    now_s: float,
    claims: RememberedClaims,
    allowed_skew_s: float = ALLOWED_SKEW_S,
) -> K:
    """The key that signed the request; arguments and errors as for `verify_head`."""
    return verify_head(
        method,
        raw_path,
        query,
        headers,
        body_sha256,
        keys,
        region=region,
        service=service,
        now_s=now_s,
        claims=claims,
        allowed_skew_s=allowed_skew_s,
    )[0]


def verify_head(
    method: str | bytes,
    raw_path: str | bytes,
    query: str | bytes,
    headers: Sequence[tuple[bytes, bytes]],
    body_sha256: str,
    keys: Mapping[str, K],
    *,
    region: str | None,
    service: str,
    now_s: float,
    claims: RememberedClaims,
    allowed_skew_s: float = ALLOWED_SKEW_S,
) -> tuple[K, SignedHead]:
    """The key that signed the request, and what verifies others with the same head.

    `raw_path` (without query) and `query` (without `?`) are as they came over the wire; `headers`
    in any case and order. `region` None accepts any region of the scope. `claims` come from
    earlier requests; the caller owns them.

    Raises:
        SignatureError: with AWS's code, text and status.
    """
    query = _bytes(query)
    values = {name.lower(): value.strip() for name, value in headers}
    if len(values) != len(headers):
        values = _joined(headers)
    authorization = values.get(b"authorization")
    remember = None
    if authorization is not None:
        start = authorization[:-_SIGNATURE_LENGTH]
        date = values.get(b"x-amz-date") or values.get(b"date", b"")
        remember = (start, date, region, service)
        claim = claims.get(remember)
        if claim is not None:
            signature, remember = authorization[-_SIGNATURE_LENGTH:], None
        else:
            claim = claim_of_header(authorization, date, region=region, service=service)
            signature = claim.signature
            if not start.endswith(b"Signature=") or len(signature) != _SIGNATURE_LENGTH:
                remember = None
    elif b"X-Amz-Algorithm=" in query:
        claim = claim_of_query(query, region=region, service=service)
        signature = claim.signature
    else:
        raise SignatureError(
            "MissingAuthenticationTokenException", "Missing Authentication Token", 403
        )
    key = _key_of(claim, keys, now_s, allowed_skew_s)
    canonical = b"%b\n%b\n%b\n%b\n%b\n" % (
        _bytes(method),
        _canonical_path(_bytes(raw_path)),
        _canonical_query(query, presigned=claim.expires_s is not None) if query else b"",
        _canonical_headers(claim, values),
        claim.signed_headers,
    )
    head = SignedHead(claim, canonical, service)
    head._compare(key, signature, body_sha256)
    if remember is not None:
        claims.keep(remember, claim)
    return key, head


def check_head(
    query: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    keys: Mapping[str, K],
    *,
    region: str | None,
    service: str,
    now_s: float,
    allowed_skew_s: float = ALLOWED_SKEW_S,
) -> None:
    """Refuse a request that no body could make right: nobody need wait for the body, or keep it.

    Arguments as for `verify_head`. What passes has yet to be verified.

    Raises:
        SignatureError: as `verify_head` would raise it.
    """
    values = _joined(headers)
    authorization = values.get(b"authorization")
    if authorization is not None:
        date = values.get(b"x-amz-date") or values.get(b"date", b"")
        claim = claim_of_header(authorization, date, region=region, service=service)
    elif b"X-Amz-Algorithm=" in query:
        claim = claim_of_query(query, region=region, service=service)
    else:
        raise SignatureError(
            "MissingAuthenticationTokenException", "Missing Authentication Token", 403
        )
    _key_of(claim, keys, now_s, allowed_skew_s)
    _canonical_headers(claim, values)


def claimed_key_id(query: bytes, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """The access key ID that a request of any service names; None when it names none."""
    for name, value in headers:
        if name.lower() == b"authorization":
            found = _CREDENTIAL.search(value)
            break
    else:
        found = _CREDENTIAL.search(unquote_to_bytes(query))
    return found[1].decode("latin-1") if found else None


def _key_of(claim: Claim, keys: Mapping[str, K], now_s: float, allowed_skew_s: float) -> K:
    """The claim's key; its time is checked first."""
    # A presigned request may be older: the check says how much.
    if abs(claim.signed_s - now_s) > allowed_skew_s or claim.expires_s is not None:
        _check_time(claim, now_s, allowed_skew_s)
    key = keys.get(claim.access_key_id)
    if key is None:
        raise SignatureError(
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
            403,
        )
    return key


@lru_cache(maxsize=1024)
def _signing_hmac(
    secret: str, date: str, region: str, service: str
) -> tuple[hashlib._Hash, hashlib._Hash]:
    """The two halves of HMAC (RFC 2104) with the signing key of a day, ready to be copied.

    Four HMACs need not be made per request, and a copy costs a third of `hmac.digest`, which looks
    for its algorithm in OpenSSL each time.
    """
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode("latin-1"), "sha256")
    block = key.ljust(_empty.block_size, b"\0")
    return (
        hashlib.sha256(bytes(byte ^ 0x36 for byte in block)),
        hashlib.sha256(bytes(byte ^ 0x5C for byte in block)),
    )


def _joined(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """By lower-case name; values of one name in their order, with commas between."""
    values: dict[bytes, bytes] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.lower(), raw_value.strip()
        values[name] = b"%b,%b" % (values[name], value) if name in values else value
    return values


def _check_time(claim: Claim, now_s: float, skew_s: float) -> None:
    signed_s = claim.signed_s
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


@lru_cache(maxsize=MAX_PATHS)
def _canonical_path(path: bytes) -> bytes:
    """Dot segments and empty segments removed, then encoded once more (the path is encoded)."""
    if _PLAIN_PATH.fullmatch(path):
        return path
    output: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            if output:
                output.pop()
        elif segment not in (b"", b"."):
            output.append(segment)
    tail = b"/" if output and path.endswith(b"/") else b""
    return quote_from_bytes(b"/" + b"/".join(output) + tail, safe="/~").encode()


def _canonical_query(query: bytes, *, presigned: bool) -> bytes:
    pairs = []
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if part and not (presigned and name == b"X-Amz-Signature"):
            pairs.append((_encoded(name), _encoded(value)))
    pairs.sort()
    return "&".join(f"{name}={value}" for name, value in pairs).encode()


def _canonical_headers(claim: Claim, values: dict[bytes, bytes]) -> bytes:
    # What changes the meaning of a call must be signed: X-Amz-Target names the operation.
    names = claim.names
    for name in values:
        if name[:6] == b"x-amz-" and name not in names:
            incomplete(
                f"'{name.decode('latin-1')}' must be a 'SignedHeader' in the AWS Authorization."
            )
    try:
        lines = claim.template % claim.values_of(values)
    except KeyError:  # a signed header that did not come
        lines = claim.template % claim.values_of({**dict.fromkeys(names, b""), **values})
    if b"  " in lines or b"\t" in lines:
        lines = _SPACES.sub(b" ", lines)
    return lines


def _encoded(text: bytes) -> str:
    return quote_from_bytes(unquote_to_bytes(text), safe="-_.~")


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1", "replace")


def _iso(time_s: float) -> str:
    return strftime("%Y%m%dT%H%M%SZ", gmtime(time_s))


def _minutes(time_s: float) -> str:
    return f"{time_s / 60:g} min"
