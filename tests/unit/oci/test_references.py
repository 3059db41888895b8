from __future__ import annotations

import pytest

from zeropull.errors import InvalidInput
from zeropull.oci.references import Reference, parse_reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ubuntu", Reference("docker.io", "library/ubuntu", "latest", None)),
        ("org/app:1.0", Reference("docker.io", "org/app", "1.0", None)),
        ("localhost/app", Reference("localhost", "app", "latest", None)),
        ("127.0.0.1:5000/a/b:t", Reference("127.0.0.1:5000", "a/b", "t", None)),
        (f"ghcr.io/a/b@{DIGEST}", Reference("ghcr.io", "a/b", None, DIGEST)),
        (f"ghcr.io/a/b:t@{DIGEST}", Reference("ghcr.io", "a/b", "t", DIGEST)),
        ("[::1]:5000/a", Reference("[::1]:5000", "a", "latest", None)),
    ],
)
def test_short_and_long_references_are_read(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text", ["", "Upper/case", "a/b:", "host.io/", "a/b:ta/g", "a@sha256:12", "a b", "../a/b"]
)
def test_what_is_not_a_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_reference(text)


def test_a_digest_goes_before_the_tag() -> None:
    assert parse_reference(f"r.io/a:t@{DIGEST}").wanted == DIGEST


def test_index_docker_io_is_docker_hub() -> None:
    assert parse_reference("index.docker.io/ubuntu:24.04") == parse_reference("ubuntu:24.04")
