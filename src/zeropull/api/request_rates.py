"""How many requests of one kind an account may send: a token bucket for each account."""

from __future__ import annotations

from dataclasses import dataclass

from zeropull.awsprotocol.faults import throttled

MAX_ACCOUNTS = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """A request costs one token, and one more for every `bytes_per_token` bytes of its body."""

    tokens_per_s: float
    burst: float
    bytes_per_token: int


# 1,000 datums every ten seconds cost two tokens a second. The whole rate is a fifth of a core.
PUT_METRIC_DATA = Rate(tokens_per_s=100.0, burst=300.0, bytes_per_token=16 << 10)


class RateLimit:
    """The buckets of one rate. The oldest goes when there are too many: it is full again then."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def take(self, account: str, body_bytes: int, now_s: float) -> None:
        """Pay for one request.

        A request that costs more than the whole burst is let through by a full bucket.

        Raises:
            ApiFault: ThrottlingException; nothing is paid.
        """
        rate = self._rate
        tokens, counted_s = self._buckets.pop(account, (rate.burst, now_s))
        # A clock that was set back gives nothing and takes nothing.
        tokens = min(rate.burst, tokens + max(0.0, now_s - counted_s) * rate.tokens_per_s)
        cost = min(rate.burst, 1.0 + body_bytes // rate.bytes_per_token)
        is_allowed = tokens >= cost
        if len(self._buckets) >= MAX_ACCOUNTS:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[account] = (tokens - cost if is_allowed else tokens, now_s)
        if not is_allowed:
            raise throttled()
