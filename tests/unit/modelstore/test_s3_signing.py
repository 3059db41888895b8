"""Signatures against those that Amazon's own library makes."""

from __future__ import annotations

import datetime

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from zeropull.modelstore.s3_signing import encode_path, encode_query, signed_headers
from zeropull.resources.sources import StoreAccess


@pytest.mark.parametrize("token", [None, "session"])
@pytest.mark.parametrize(
    "path",
    [
        "models/plain",
        "models//a//b/",
        "models/a/../b",
        "models/a b+c=&?#\u00fc~",
        "models/?" + encode_query([("prefix", "a/ b"), ("list-type", "2"), ("a", "")]),
    ],
)
def test_signatures_are_amazons(path: str, token: str | None) -> None:
    key, question, query = path.partition("/?")
    url = f"http://store.example:9000/{encode_path(key)}{question}{query}"
    request = AWSRequest("GET", url, headers={"Range": "bytes=0-5"})
    signer = S3SigV4Auth(Credentials("id", "secret", token), "s3", "eu-west-1")
    request.context["payload_signing_enabled"] = True
    signer.add_auth(request)
    signed_at = datetime.datetime.strptime(request.context["timestamp"], "%Y%m%dT%H%M%S%z")
    access = StoreAccess(access_key_id="id", secret_access_key="secret", session_token=token)
    ours = signed_headers(
        "GET", url, {"Range": "bytes=0-5"}, access, "eu-west-1", now_s=signed_at.timestamp()
    )
    theirs = dict(request.headers.items())
    assert ours["Authorization"] == theirs["Authorization"]
    assert ours["x-amz-date"] == theirs["X-Amz-Date"]


def test_nothing_is_signed_without_a_key() -> None:
    assert signed_headers("GET", "http://s/", {"A": "b"}, StoreAccess(), "r", now_s=0) == {"A": "b"}
