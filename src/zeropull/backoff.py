"""How long to wait after failures in a row: the pause doubles up to a limit."""

from __future__ import annotations

from dataclasses import dataclass

# 2.0 ** 1024 is no float. A thousand doublings of a millisecond are beyond every limit.
_MAX_DOUBLINGS = 1000


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses that begin with `first_s`, double with each failure and never exceed `limit_s`."""

    first_s: float
    limit_s: float

    def after(self, failures: int, *, jitter: float = 0.0) -> float:
        """Seconds to wait after so many failures in a row; 0.0 without a failure.

        `jitter` is a random number between 0 and 1 that the caller draws: it shortens the pause by
        up to a half, so that many callers who failed together do not come back together.
        """
        if failures <= 0:
            return 0.0
        doubled_s = self.first_s * 2.0 ** min(failures - 1, _MAX_DOUBLINGS)
        return min(self.limit_s, doubled_s) * (1.0 - jitter / 2)
