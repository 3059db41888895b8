"""Signed requests with a remembered head are read and judged as ever."""

from __future__ import annotations

import hashlib
import itertools
from datetime import UTC, datetime
from typing import Any, cast
from unittest.mock import patch

import botocore.auth
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from zeropull.awsprotocol import sigv4
from zeropull.awsprotocol.faults import SignatureError
from zeropull.awsprotocol.sigv4_claims import RememberedClaims
from zeropull.controlapi.messages import AccessKey
from zeropull.gateway.connection import ClientConnection
from zeropull.gateway.request import Request
from zeropull.gateway.signed_request import MAX_LAYOUTS, SignedRequests
from zeropull.gateway.whole_request import MAX_REMEMBERED, KnownHead

from .test_whole_request import Peer as WholePeer

KEY = AccessKey("AKID", "secret", "111122223333")
KEYS = {KEY.access_key_id: KEY}
URL = "http://127.0.0.1:8440/endpoints/chat/invocations"
MOMENT = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)
NOW_S = MOMENT.timestamp()
_ids = itertools.count()


def signed(
    body: bytes = b"body", *, secret: str = KEY.secret_access_key, call_id: str | None = None
) -> bytes:
    """As boto3 sends it."""
    request = AWSRequest("POST", URL, {"Content-Type": "application/json"}, body)
    credentials = Credentials(KEY.access_key_id, secret)
    with patch.object(botocore.auth, "get_current_datetime", lambda **_: MOMENT):
        SigV4Auth(credentials, "sagemaker", "us-east-1").add_auth(request)
    sent = {"Host": "127.0.0.1:8440", **dict(request.headers.items())}
    sent["amz-sdk-invocation-id"] = call_id or f"0b8ab0a6-fd33-4a29-9f0b-{next(_ids):012}"
    sent["amz-sdk-request"] = "attempt=1; max=2"
    sent["Content-Length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"POST /endpoints/chat/invocations HTTP/1.1\r\n{lines}\r\n".encode() + body


def changed(data: bytes, *changes: tuple[bytes, bytes]) -> bytes:
    for old, new in changes:
        assert old in data
        data = data.replace(old, new)
    return data


GOOD = signed()
SIGNATURE = GOOD.partition(b"Signature=")[2][:64]
CALL_ID = GOOD.partition(b"invocation-id: ")[2][:36]
NASTY = [
    signed(b""),
    signed(b"another body"),
    signed(secret="wrong"),
    signed()[:-1],
    signed() + b"x",
    signed() + signed(),
    b"\r\n" + signed(),
    changed(signed(), (b"body", b"bodx")),
    changed(GOOD, (SIGNATURE, b"0" * 64)),
    changed(GOOD, (SIGNATURE, SIGNATURE.upper())),
    changed(GOOD, (SIGNATURE, SIGNATURE[:-2] + b"\r\n")),
    changed(GOOD, (SIGNATURE, SIGNATURE[:30] + b"\r\nX: " + SIGNATURE[35:])),
    changed(GOOD, (SIGNATURE, SIGNATURE[:30] + b"\r\n\r\n" + SIGNATURE[34:])),
    changed(GOOD, (SIGNATURE, SIGNATURE[:-1])),
    changed(GOOD, (CALL_ID, CALL_ID[:-3] + b"\r\n ")),
    changed(GOOD, (CALL_ID, CALL_ID[:10] + b"\r\n\r\n" + CALL_ID[14:])),
    changed(GOOD, (CALL_ID, CALL_ID[:10] + b"\r\nExpect: 100-continue\r\nX: " + CALL_ID[10:])),
    changed(GOOD, (CALL_ID, CALL_ID[:10] + b"\x00" + CALL_ID[11:])),
    changed(GOOD, (b"Content-Length: 4", b"Content-Length: 04")),
    changed(GOOD, (b"Content-Length: 4", b"Content-Length: +4")),
    changed(GOOD, (b"Content-Length: 4", b"Content-Length: 4\r\nContent-Length: 4")),
    changed(GOOD, (b"Content-Length: 4", b"Content-Length: 4\r\nTransfer-Encoding: chunked")),
    changed(GOOD, (b"Content-Length: 4", b"Content-Length: 99999999999999999999")),
    changed(GOOD, (b"Content-Length: 4", b"Content-Length: ")),
    changed(GOOD, (b"application/json", b"text/plain")),
    changed(GOOD, (b"/chat/", b"/other/")),
    changed(GOOD, (b"invocations HTTP", b"invocations?X-Amz-Signature=1 HTTP")),
    changed(GOOD, (b"attempt=1", b"attempt=1\r\nX-Amz-Extra: unsigned")),
    changed(GOOD, (b"AKID", b"OTHER")),
    changed(GOOD, (b"HTTP/1.1", b"HTTP/1.0")),
    changed(GOOD, (b"attempt=1", b"attempt=1\r\nConnection: close")),
]


class Judge:
    """A handler that says whose request it was, or why not."""

    def __init__(self, client: ClientConnection, request: Request, seen: list[Any]) -> None:
        self.client, self.request, self.seen = client, request, seen
        self.body = b""

    def start(self) -> None: ...

    def on_chunk(self, data: bytes) -> None:
        self.body += data

    def on_complete(self) -> None:
        request = self.request
        try:
            key, request.signed = sigv4.verify_head(
                request.method,
                request.path,
                request.query,
                request.headers,
                hashlib.sha256(self.body).hexdigest(),
                KEYS,
                region="us-east-1",
                service="sagemaker",
                now_s=NOW_S,
                claims=RememberedClaims(),
            )
            self.say(key.account)
        except SignatureError as error:
            self.say(error.code)

    def start_whole(self, known: KnownHead, body: bytes, signature: bytes) -> None:
        assert known.signed is not None
        self.body = body
        sha256 = hashlib.sha256(body).hexdigest()
        try:
            self.say(known.signed.verify(signature, sha256, KEYS, now_s=NOW_S).account)
        except SignatureError as error:
            self.say(error.code)

    def say(self, verdict: str) -> None:
        self.seen.append((self.request.target, self.request.keep_alive, self.body, verdict))
        self.client.finished()

    def on_client_gone(self) -> None:
        self.seen.append("gone")

    def on_client_writable(self, writable: bool) -> None: ...


class Forgetful(SignedRequests):
    def find(self, data: bytes) -> None:
        return None


class Peer(WholePeer):
    """One of a gateway that verifies."""

    def __init__(self, requests: SignedRequests | None = None) -> None:
        self._connect(requests or SignedRequests(), Judge)


def assert_as_ever(*parts: bytes) -> None:
    assert Peer().feed(*parts) == Peer(Forgetful()).feed(*parts)


@pytest.mark.parametrize("nasty", NASTY, ids=range(len(NASTY)))
def test_whatever_comes_is_judged_as_ever(nasty: bytes) -> None:
    assert_as_ever(nasty, nasty, GOOD)
    assert_as_ever(GOOD, nasty, nasty, GOOD)
    assert_as_ever(GOOD, nasty[:30], nasty[30:], GOOD)


@given(
    st.lists(st.sampled_from([GOOD, *NASTY]), max_size=5),
    st.lists(st.tuples(st.integers(0, 900), st.sampled_from(b"\r\n :,0459aZ\x00\xff")), max_size=3),
    st.integers(1, 900),
)
def test_no_mutation_is_judged_otherwise(
    parts: list[bytes], changes: list[tuple[int, int]], size: int
) -> None:
    assert_as_ever(GOOD, *parts, GOOD)
    whole = bytearray(b"".join(parts))
    for place, byte in changes:
        if whole:
            whole[place % len(whole)] = byte
    assert_as_ever(GOOD, *(bytes(whole[i : i + size]) for i in range(0, len(whole), size)), GOOD)
    assert_as_ever(GOOD, bytes(whole), GOOD)


def test_the_second_of_a_second_needs_no_parser() -> None:
    peer = Peer()
    peer.feed(GOOD)
    peer.connection._reader._parser = cast(Any, None)
    bodies = [b"", b"one", b"x" * 99, b"body"]
    (seen, said) = peer.feed(*map(signed, bodies))
    assert [(body, verdict) for *_, body, verdict in seen] == [
        (body, KEY.account) for body in [b"body", *bodies]
    ]
    assert said == []
    (seen, _) = peer.feed(changed(GOOD, (SIGNATURE, b"0" * 64)))
    assert seen[-1][-1] == "InvalidSignatureException"
    peer.requests.forget()
    assert peer.requests.find(GOOD) is None


def test_only_what_was_signed_rightly_is_remembered_and_never_too_much() -> None:
    peer = Peer()
    peer.feed(signed(secret="wrong"), changed(GOOD, (b"AKID", b"OTHER")))
    assert not peer.requests._known
    for number in range(100_000, 100_000 + MAX_REMEMBERED + 5):
        peer.feed(changed(GOOD, (b"attempt=1", b"attempt=%d" % number)))
    (heads,) = peer.requests._known.values()
    assert 0 < len(heads) <= MAX_REMEMBERED
    for number in range(MAX_LAYOUTS + 2):
        peer.feed(changed(GOOD, (b"attempt=1", b"attempt=1" + b"0" * number)))
        assert 0 < len(peer.requests._known) <= MAX_LAYOUTS
