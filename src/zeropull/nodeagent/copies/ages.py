"""How long ago something was, by a clock that nobody sets."""

from __future__ import annotations

from collections.abc import Callable


class AgeOf:
    """Age of something that a record dates with the wall clock.

    The wall clock is asked once, when the record is read. From then on a monotonic clock measures,
    so that a step of the wall clock ends no time-out.
    """

    def __init__(
        self, at_s: float | None, clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        """`at_s` in Unix seconds; None: it has not happened yet, the age is 0."""
        self._monotonic = monotonic
        self._from_s: float | None = None
        if at_s is not None:
            self._from_s = monotonic() - max(0.0, clock() - at_s)

    def begin(self) -> None:
        """It happens now."""
        self._from_s = self._monotonic()

    @property
    def seconds(self) -> float:
        return 0.0 if self._from_s is None else self._monotonic() - self._from_s
