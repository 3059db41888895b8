"""Signatures of requests to S3 (AWS Signature Version 4, as S3 wants it).

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. Unlike other
services S3 takes the path as it is: nothing is normalised, and it is encoded once.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from zeropull.resources.sources import StoreAccess

_EMPTY = hashlib.sha256(b"").hexdigest()
_ALGORITHM = "AWS4-HMAC-SHA256"

Query = Sequence[tuple[str, str]]


def encode_path(key: str) -> str:
    """A key as it stands in a URL. Slashes stay, also those that follow each other."""
    return quote(key, safe="/-_.~")


def encode_query(query: Query) -> str:
    """In the order that the signature wants."""
    encoded = (f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query)
    return "&".join(sorted(encoded))


def signed_headers(
    method: str,
    url: str,
    headers: Mapping[str, str],
    access: StoreAccess,
    region: str,
    *,
    now_s: float,
) -> dict[str, str]:
    """`headers` with those of the signature; without an access key they stay as they are.

    `url` has its path and query encoded as above; the request has no body.
    """
    if access.access_key_id is None:
        return dict(headers)
    parts = urlsplit(url)
    moment = datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    sent = {**headers, "x-amz-date": moment, "x-amz-content-sha256": _EMPTY}
    if access.session_token is not None:
        sent["x-amz-security-token"] = access.session_token
    signed = {name.lower(): " ".join(value.split()) for name, value in sent.items()}
    signed["host"] = parts.netloc
    names = ";".join(sorted(signed))
    lines = [method, parts.path or "/", parts.query]
    lines += [f"{name}:{signed[name]}" for name in sorted(signed)]
    lines += ["", names, _EMPTY]
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    text = "\n".join([_ALGORITHM, moment, scope, digest])
    key = b"AWS4" + (access.secret_access_key or "").encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    sent["Authorization"] = (
        f"{_ALGORITHM} Credential={access.access_key_id}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return sent
