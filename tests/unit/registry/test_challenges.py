from __future__ import annotations

import pytest

from zeropull.registry.challenges import Challenge, parse_challenges

BEARER = 'Bearer realm="https://a.example/token",service="s",scope="repository:a/b:pull,push"'
PARAMETERS = {
    "realm": "https://a.example/token",
    "service": "s",
    "scope": "repository:a/b:pull,push",
}


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        (BEARER, [Challenge("bearer", PARAMETERS)]),
        (
            f'Basic realm="a, b", {BEARER}',
            [Challenge("basic", {"realm": "a, b"}), Challenge("bearer", PARAMETERS)],
        ),
        (
            f"{BEARER}, Basic realm=plain",
            [Challenge("bearer", PARAMETERS), Challenge("basic", {"realm": "plain"})],
        ),
        ("Negotiate, Basic", [Challenge("negotiate"), Challenge("basic")]),
        (
            'Negotiate YII+/abc==, Basic realm="r"',
            [Challenge("negotiate"), Challenge("basic", {"realm": "r"})],
        ),
        ('BASIC  Realm = "a\\"b"', [Challenge("basic", {"realm": 'a"b'})]),
        (', , Basic realm="r" ,', [Challenge("basic", {"realm": "r"})]),
        ("", []),
        ('"', []),
    ],
)
def test_every_challenge_of_a_header_is_found(header: str, challenges: list[Challenge]) -> None:
    assert parse_challenges(header) == challenges
