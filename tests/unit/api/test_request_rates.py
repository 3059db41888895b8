"""Token buckets by account."""

from __future__ import annotations

import pytest

from zeropull.api.request_rates import MAX_ACCOUNTS, Rate, RateLimit
from zeropull.awsprotocol.faults import ApiFault

RATE = Rate(tokens_per_s=10.0, burst=20.0, bytes_per_token=1000)


def taken(limit: RateLimit, account: str, now_s: float, body_bytes: int = 0) -> int:
    """How many requests go through at once."""
    count = 0
    while True:
        try:
            limit.take(account, body_bytes, now_s)
        except ApiFault as fault:
            assert fault.code == "ThrottlingException"
            return count
        count += 1


def test_a_burst_goes_through_and_then_the_rate() -> None:
    limit = RateLimit(RATE)
    assert taken(limit, "a", 100.0) == 20
    assert taken(limit, "a", 100.5) == 5
    assert taken(limit, "a", 900.0) == 20


def test_accounts_do_not_pay_for_each_other() -> None:
    limit = RateLimit(RATE)
    assert taken(limit, "a", 100.0) == 20
    assert taken(limit, "b", 100.0) == 20


def test_bytes_cost_tokens_and_the_largest_body_is_not_refused_for_ever() -> None:
    limit = RateLimit(RATE)
    assert taken(limit, "a", 100.0, body_bytes=4000) == 4
    assert taken(limit, "b", 100.0, body_bytes=10**9) == 1
    assert taken(limit, "b", 101.9, body_bytes=10**9) == 0
    assert taken(limit, "b", 102.0, body_bytes=10**9) == 1


def test_a_clock_that_is_set_back_takes_nothing() -> None:
    limit = RateLimit(RATE)
    limit.take("a", 0, 1000.0)
    assert taken(limit, "a", 10.0) == 19
    assert taken(limit, "a", 11.0) == 10


def test_the_number_of_buckets_is_bounded() -> None:
    limit = RateLimit(RATE)
    for number in range(MAX_ACCOUNTS + 10):
        limit.take(str(number), 0, 1.0)
    with pytest.raises(ApiFault):
        for _ in range(20):
            limit.take(str(MAX_ACCOUNTS + 9), 0, 1.0)
    assert len(limit._buckets) == MAX_ACCOUNTS
