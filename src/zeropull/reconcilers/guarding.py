"""Endpoints with which something goes wrong that nobody foresaw: told, tried again, given up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from zeropull.backoff import Backoff
from zeropull.errors import ZeropullError
from zeropull.reconcilers.failure_reasons import unforeseen_failure
from zeropull.resources.endpoints import Endpoint, EndpointStatus
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

log = get_logger(__name__)


@dataclass(slots=True)
class Trouble:
    """Times are of the monotonic clock. `reason` is the sentence for the endpoint."""

    began_s: float
    failures: int = 0
    not_before_s: float = 0.0
    reason: str = ""


class Guard:
    """What went wrong, by endpoint key. One endpoint's trouble is none of the others'."""

    def __init__(self, backoff: Backoff, monotonic: Callable[[], float]) -> None:
        self._backoff = backoff
        self._monotonic = monotonic
        self._troubles: dict[str, Trouble] = {}

    def has_trouble(self, key: str) -> bool:
        return key in self._troubles

    def may_try(self, key: str) -> bool:
        trouble = self._troubles.get(key)
        return trouble is None or self._monotonic() >= trouble.not_before_s

    def note(
        self, store: Store, endpoint: Endpoint, error: Exception, limit_s: float, now_s: float
    ) -> None:
        """Log what went wrong, and write its reason to the endpoint. Never raises."""
        is_news = not self.has_trouble(endpoint.key) and not isinstance(error, ZeropullError)
        log.error(
            "endpoint not reconciled",
            endpoint=endpoint.name,
            error=str(error),
            exc_info=error if is_news else None,  # a traceback is long: once is enough
        )
        try:
            with store.transaction():
                stored = store.get(Endpoint, endpoint.key)
                if stored is not None and stored.document.uid == endpoint.uid:
                    store.put(self.failed(stored.document, error, limit_s, now_s))
        except Exception as again:  # the store's own trouble, say a full disk: only the log is left
            log.error("failure not noted", endpoint=endpoint.name, error=str(again))

    def failed(
        self, endpoint: Endpoint, error: Exception, limit_s: float, now_s: float
    ) -> Endpoint:
        """The endpoint with the reason; given up when it has gone wrong for `limit_s`."""
        moment_s = self._monotonic()
        trouble = self._troubles.setdefault(endpoint.key, Trouble(moment_s))
        trouble.failures += 1
        delay_s = self._backoff.after(trouble.failures)
        trouble.not_before_s = moment_s + delay_s
        text = f"{type(error).__name__}: {error}"
        if moment_s - trouble.began_s >= limit_s:
            trouble.reason = unforeseen_failure(f"{text} (tried {trouble.failures} times)")
            return _given_up(endpoint, trouble.reason, now_s)
        trouble.reason = unforeseen_failure(f"{text}; tried again in {delay_s:.0f} s")
        return replace(endpoint, failure_reason=trouble.reason)

    def went_well(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint without the reason of a trouble that is over."""
        trouble = self._troubles.pop(endpoint.key, None)
        if trouble is None or endpoint.failure_reason != trouble.reason:
            return endpoint
        if endpoint.status is EndpointStatus.FAILED:
            return endpoint
        return replace(endpoint, failure_reason="")

    def forget(self, key: str) -> None:
        self._troubles.pop(key, None)


def _given_up(endpoint: Endpoint, reason: str, now_s: float) -> Endpoint:
    """A creation fails; an update is forgotten, and what served goes on."""
    match endpoint.status:
        case EndpointStatus.CREATING:
            status = EndpointStatus.FAILED
        case EndpointStatus.UPDATING | EndpointStatus.ROLLING_BACK:
            status = EndpointStatus.IN_SERVICE
        case _:
            return replace(endpoint, failure_reason=reason)
    pending = endpoint.pending if status is EndpointStatus.FAILED else None
    return replace(
        endpoint, status=status, pending=pending, failure_reason=reason, modified_s=now_s
    )
