"""SigV4 against botocore's own signer."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch
from urllib.parse import quote, urlsplit

import botocore.auth
import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from zeropull.awsprotocol.faults import SignatureError
from zeropull.awsprotocol.sigv4 import verify
from zeropull.awsprotocol.sigv4_claims import RememberedClaims

NOW_S = 1_790_000_000.0
REGION, SERVICE = "us-east-1", "sagemaker"


@dataclass(frozen=True)
class Key:
    access_key_id: str = "AKIAEXAMPLE"
    secret_access_key: str = "s/e+cret"


KEYS = {"AKIAEXAMPLE": Key()}
CLAIMS = RememberedClaims()  # of all tests: none may change what another one sees


def sign(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    at_s: float = NOW_S,
    token: str | None = None,
    expires_s: int | None = None,
    service: str = SERVICE,
    region: str = REGION,
    secret: str = "s/e+cret",
) -> dict[str, Any]:
    """Arguments of `verify` for a request as botocore signs it."""
    moment = datetime.datetime.fromtimestamp(at_s, datetime.UTC)
    request = AWSRequest(method, url, dict(headers), body)
    credentials = Credentials("AKIAEXAMPLE", secret, token)
    with patch.object(botocore.auth, "get_current_datetime", lambda **_: moment):
        if expires_s is None:
            SigV4Auth(credentials, service, region).add_auth(request)
        else:
            SigV4QueryAuth(credentials, service, region, expires_s).add_auth(request)
    parts = urlsplit(request.url)
    raw = [(name.encode(), str(value).encode()) for name, value in request.headers.items()]
    if "host" not in {name.lower() for name, _ in raw}:
        raw.append((b"Host", parts.netloc.encode()))
    return {
        "method": method,
        "raw_path": parts.path or "/",
        "query": parts.query,
        "headers": raw,
        "body_sha256": hashlib.sha256(body).hexdigest(),
    }


def check(arguments: dict[str, Any], **changes: Any) -> Key:
    given: dict[str, Any] = {
        "keys": KEYS, "region": REGION, "service": SERVICE, "now_s": NOW_S, "claims": CLAIMS,
    }  # fmt: skip
    return verify(**(arguments | given | changes))


def simple(**options: Any) -> dict[str, Any]:
    headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "SageMaker.ListModels"}
    return sign("POST", "http://127.0.0.1:8440/", headers, b"{}", **options)


segments = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12),
    max_size=4,
)
header_values = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=30
)


@settings(max_examples=150, deadline=None)
@given(
    path=segments,
    query=st.dictionaries(st.text("aB1-_.~ é&=+/", min_size=1, max_size=5), st.text(max_size=8)),
    headers=st.dictionaries(st.sampled_from(["X-Amzn-A", "Accept", "X-Amz-B"]), header_values),
    body=st.binary(max_size=64),
    token=st.none() | st.just("session-token"),
)
def test_what_botocore_signs_is_verified(
    path: list[str],
    query: dict[str, str],
    headers: dict[str, str],
    body: bytes,
    token: str | None,
) -> None:
    encoded = "/".join(quote(part, safe="") for part in path)
    pairs = [(k, v.encode("utf-8", "replace").decode()) for k, v in query.items()]
    text = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in pairs)
    url = f"http://localhost:8440/{encoded}" + (f"?{text}" if text else "")
    arguments = sign("POST", url, headers, body, token=token)
    assert check(arguments) is KEYS["AKIAEXAMPLE"]
    with pytest.raises(SignatureError, match="does not match the signature"):
        check(arguments, body_sha256=hashlib.sha256(body + b"x").hexdigest())


@settings(max_examples=50, deadline=None)
@given(path=segments, expires_s=st.integers(1, 604_800), late_s=st.integers(-300, 700_000))
def test_presigned_queries_hold_as_long_as_they_say(
    path: list[str], expires_s: int, late_s: int
) -> None:
    url = "http://localhost:8440/" + "/".join(quote(part, safe="") for part in path)
    arguments = sign("GET", url + "?a=b%20c", {}, b"", expires_s=expires_s)
    if late_s <= expires_s:
        assert check(arguments, now_s=NOW_S + late_s)
    else:
        with pytest.raises(SignatureError, match="Signature expired"):
            check(arguments, now_s=NOW_S + late_s)


def test_bytes_of_path_and_query_and_any_region_are_accepted() -> None:
    arguments = simple(region="eu-west-3")
    arguments |= {"raw_path": b"/", "query": b""}
    assert check(arguments, region=None)


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({"secret": "other"}, "InvalidSignatureException", "does not match the signature"),
        ({"at_s": NOW_S - 301}, "InvalidSignatureException", "Signature expired: 2026"),
        ({"at_s": NOW_S + 301}, "InvalidSignatureException", "Signature not yet current: "),
        ({"region": "eu-west-3"}, "InvalidSignatureException", "scoped to a valid Region"),
        ({"service": "s3"}, "InvalidSignatureException", "to correct service: 'sagemaker'"),
    ],
)
def test_wrong_signatures_are_refused_with_the_texts_of_aws(
    options: dict[str, Any], code: str, text: str
) -> None:
    with pytest.raises(SignatureError) as caught:
        check(simple(**options))
    assert caught.value.code == code
    assert caught.value.status == 403
    assert text in caught.value.message


def test_the_edge_of_the_skew_is_inside() -> None:
    assert check(simple(at_s=NOW_S - 300))
    assert check(simple(at_s=NOW_S + 300))


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(SignatureError) as caught:
        check(simple(), keys={})
    assert caught.value.code == "UnrecognizedClientException"


def replaced(old: bytes, new: bytes) -> dict[str, Any]:
    arguments = simple()
    arguments["headers"] = [(name, value.replace(old, new)) for name, value in arguments["headers"]]
    return arguments


@pytest.mark.parametrize(
    ("old", "new", "code", "text"),
    [
        (b"AWS4-HMAC-SHA256", b"AWS4-OTHER", "IncompleteSignatureException", "algorithm"),
        (b"Signature=", b"Signed=", "IncompleteSignatureException", "requires 'Signature'"),
        (b"Credential=", b"Credential", "IncompleteSignatureException", "missing equal-sign"),
        (b"/aws4_request", b"", "IncompleteSignatureException", "exactly 5"),
        (b"aws4_request", b"aws5_request", "InvalidSignatureException", "terminator"),
        (b"host;", b"", "IncompleteSignatureException", "'Host' must be"),
        (b";x-amz-target", b"", "IncompleteSignatureException", "'x-amz-target' must be"),
        (b"SageMaker.List", b"SageMaker.Delete", "InvalidSignatureException", "does not match"),
        (b"127.0.0.1", b"127.0.0.2", "InvalidSignatureException", "does not match"),
    ],
)
def test_a_tampered_or_malformed_request_is_refused(
    old: bytes, new: bytes, code: str, text: str
) -> None:
    with pytest.raises(SignatureError) as caught:
        check(replaced(old, new))
    assert caught.value.code == code
    assert text in caught.value.message


def test_no_authorization_and_a_wrong_scope_date_are_told_apart() -> None:
    arguments = simple()
    arguments["headers"] = [h for h in arguments["headers"] if h[0] != b"Authorization"]
    with pytest.raises(SignatureError) as caught:
        check(arguments)
    assert caught.value.code == "MissingAuthenticationTokenException"
    arguments = simple()
    day = next(v for n, v in arguments["headers"] if n == b"X-Amz-Date")[:8]
    with pytest.raises(SignatureError, match="Date in Credential scope does not match"):
        check(replaced(b"/" + day + b"/", b"/20200101/"))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=100))
def test_garbage_is_refused_and_never_breaks(authorization: bytes, query: bytes) -> None:
    for prefix in (b"", b"AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/"):
        with pytest.raises(SignatureError):
            check(
                {
                    "method": "POST",
                    "raw_path": b"/" + query,
                    "query": b"X-Amz-Algorithm=" + query,
                    "headers": [
                        (b"authorization", prefix + authorization),
                        (b"x-amz-date", authorization[:16]),
                    ],
                    "body_sha256": "",
                }
            )


@pytest.fixture
def known() -> dict[str, Any]:
    """A request whose claim is remembered, since it has been verified once."""
    arguments = simple()
    assert check(arguments)
    return arguments


def altered(arguments: dict[str, Any], name: bytes, old: bytes, new: bytes) -> dict[str, Any]:
    headers = [
        (found, value.replace(old, new) if found == name else value)
        for found, value in arguments["headers"]
    ]
    assert headers != arguments["headers"]
    return arguments | {"headers": headers}


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "PUT"},
        {"raw_path": "/other"},
        {"raw_path": "/a/../b"},
        {"query": "a=1"},
        {"body_sha256": hashlib.sha256(b"{} ").hexdigest()},
        {"keys": {"AKIAEXAMPLE": Key(secret_access_key="changed")}},
    ],
)
def test_a_remembered_claim_vouches_for_nothing_else(
    known: dict[str, Any], changes: dict[str, Any]
) -> None:
    with pytest.raises(SignatureError, match="does not match the signature"):
        check(known, **changes)
    assert check(known)


@pytest.mark.parametrize(
    ("name", "old", "new", "text"),
    [
        (b"X-Amz-Target", b"List", b"Delete", "does not match"),
        (b"Content-Type", b"json", b"text", "does not match"),
        (b"Host", b"127.0.0.1", b"127.0.0.2", "does not match"),
        (b"Authorization", b"Signature=", b"Signature=0", "does not match"),
        (b"Authorization", b"/us-east-1/", b"/eu-west-3/", "scoped to a valid Region"),
        (b"Authorization", b"/sagemaker/", b"/s3/", "to correct service"),
        (b"Authorization", b"AKIAEXAMPLE", b"AKIAUNKNOWN", "security token"),
        (b"Authorization", b"content-type;", b"", "does not match"),
        (b"X-Amz-Date", b"T", b"T0", "basic format"),
    ],
)
def test_what_is_altered_behind_a_remembered_claim_is_refused(
    known: dict[str, Any], name: bytes, old: bytes, new: bytes, text: str
) -> None:
    with pytest.raises(SignatureError, match=text):
        check(altered(known, name, old, new))


def test_every_part_of_a_remembered_claims_signature_counts(known: dict[str, Any]) -> None:
    (authorization,) = (value for name, value in known["headers"] if name == b"Authorization")
    for place in (-64, -33, -1):
        end = authorization[place:]
        flipped = (b"0" if end[:1] != b"0" else b"1") + end[1:]
        with pytest.raises(SignatureError, match="does not match"):
            check(altered(known, b"Authorization", end, flipped))


def test_a_remembered_claim_expires_and_its_key_can_be_taken_away(known: dict[str, Any]) -> None:
    for now_s, text in ((NOW_S + 301, "Signature expired"), (NOW_S - 301, "not yet current")):
        with pytest.raises(SignatureError, match=text):
            check(known, now_s=now_s)
    with pytest.raises(SignatureError, match="security token"):
        check(known, keys={})
    with pytest.raises(SignatureError, match="scoped to a valid Region"):
        check(known, region="eu-west-3")
    with pytest.raises(SignatureError, match="to correct service"):
        check(known, service="monitoring")


def test_headers_may_come_in_any_order_and_case_with_spaces_around(known: dict[str, Any]) -> None:
    headers = [(name.upper(), b"  " + value + b" \t") for name, value in known["headers"]]
    assert check(known | {"headers": headers[::-1]})


@pytest.mark.parametrize("added", [b"X-Amz-Target", b"Host", b"X-Amz-Date", b"Authorization"])
def test_a_second_header_of_a_signed_name_is_refused(known: dict[str, Any], added: bytes) -> None:
    (value,) = (value for name, value in known["headers"] if name == added)
    for headers in (
        [*known["headers"], (added, value)],
        [(added.lower(), b""), *known["headers"]],
        [(added, b"other"), *known["headers"]],
    ):
        with pytest.raises(SignatureError):
            check(known | {"headers": headers})


def test_a_header_that_means_something_must_be_signed_also_behind_a_remembered_claim(
    known: dict[str, Any],
) -> None:
    assert check(known | {"headers": [*known["headers"], (b"Accept", b"anything")]})
    with pytest.raises(SignatureError, match="'x-amz-other' must be a 'SignedHeader'"):
        check(known | {"headers": [*known["headers"], (b"X-Amz-Other", b"")]})


def test_runs_of_spaces_in_a_signed_value_are_one() -> None:
    headers = {"X-Amz-Note": "a   b  c", "Content-Type": "text/plain"}
    arguments = sign("POST", "http://127.0.0.1:8440/", headers, b"")
    assert check(arguments)
    assert check(altered(arguments, b"X-Amz-Note", b"a   b  c", b"a b\t \tc"))
    with pytest.raises(SignatureError, match="does not match"):
        check(altered(arguments, b"X-Amz-Note", b"a   b  c", b"ab c"))


def test_a_signed_header_that_did_not_come_is_an_empty_one(known: dict[str, Any]) -> None:
    headers = [(name, value) for name, value in known["headers"] if name != b"X-Amz-Target"]
    with pytest.raises(SignatureError, match="does not match"):
        check(known | {"headers": headers})


def test_bytes_that_are_no_text_are_refused_as_a_signature(known: dict[str, Any]) -> None:
    (authorization,) = (value for name, value in known["headers"] if name == b"Authorization")
    with pytest.raises(SignatureError, match="does not match"):
        check(altered(known, b"Authorization", authorization[-64:], b"\xff" * 64))
    with pytest.raises(SignatureError, match="does not match"):
        check(altered(known, b"Authorization", authorization[-64:], b"\xff"))


def test_only_verified_claims_are_remembered_and_never_too_many() -> None:
    claims = RememberedClaims(limit=3)
    for number in range(50):
        with pytest.raises(SignatureError):
            wrong = altered(simple(), b"Authorization", b"AKIAEXAMPLE", b"AKIA%d" % number)
            check(wrong, claims=claims)
        with pytest.raises(SignatureError):
            check(simple(secret="other"), claims=claims)
    assert len(claims) == 0
    for second in range(10):
        assert check(simple(at_s=NOW_S + second), claims=claims)
    assert len(claims) == 3
