"""The gateway's own pages: /healthz, and /metrics in Prometheus' text format 0.0.4."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator

import aiohttp

from zeropull.gateway import refusals
from zeropull.gateway.clients import is_on_this_machine
from zeropull.gateway.connection import ClientConnection
from zeropull.gateway.request import Request
from zeropull.gateway.routing import Group
from zeropull.gateway.state import GatewayState

CONTROL_PLANE_TIMEOUT_S = 2.0
METRICS = b"/metrics"
PAGES = frozenset({b"/healthz", METRICS})
METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class OwnPage:
    """Handler of one request to a page of the gateway itself."""

    __slots__ = ("_client", "_gone", "_request", "_state")

    def __init__(self, state: GatewayState, client: ClientConnection, request: Request) -> None:
        self._state = state
        self._client = client
        self._request = request
        self._gone = False

    def start(self) -> None:
        """The answer waits for the end of the request, so that the next one follows cleanly."""

    def on_chunk(self, data: bytes) -> None:
        """A body means nothing here."""

    def on_complete(self) -> None:
        if self._request.path == METRICS:
            if not self._may_read_metrics():
                self._client.refuse(self._request, refusals.metrics_not_allowed())
                self._client.finished()
                return
            self._state.tasks.create_task(self._collect())
        else:
            version = self._state.table.version
            self._answer(b'{"status":"ok","routes_version":%d}' % version, b"application/json")

    def on_client_gone(self) -> None:
        self._gone = True

    def on_client_writable(self, writable: bool) -> None:
        """A page is small."""

    def _may_read_metrics(self) -> bool:
        """They tell names and loads of all accounts: a client on this machine may read them, and
        one that has the token."""
        if is_on_this_machine(self._client.address):
            return True
        token = self._state.settings.metrics_token
        shown = dict((name.lower(), value) for name, value in self._request.headers)
        expected = f"Bearer {token}".encode()
        given = shown.get(b"authorization", b"")
        return bool(token) and hmac.compare_digest(expected, given)

    async def _collect(self) -> None:
        """The gateway's metrics, and the control plane's behind them when it answers."""
        page = "\n".join(metrics_lines(self._state)).encode() + b"\n"
        timeout = aiohttp.ClientTimeout(total=CONTROL_PLANE_TIMEOUT_S)
        try:
            connector = aiohttp.UnixConnector(self._state.api_socket)
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.get("http://control/metrics") as answer,
            ):
                if answer.status == 200:
                    page += await answer.read()
        except (aiohttp.ClientError, OSError):
            pass  # these are the gateway's metrics: they are there without the control plane too
        self._answer(page, METRICS_TYPE)

    def _answer(self, body: bytes, content_type: bytes) -> None:
        if self._gone:
            return
        self._client.write(
            refusals.response(
                200,
                body,
                request_id=self._state.next_request_id(),
                content_type=content_type,
                close=self._client.announce_close(self._request),
            )
        )
        self._client.finished()


def metrics_lines(state: GatewayState) -> Iterator[str]:
    groups = list(state.table.groups.values())
    yield from _family("requests_total", "counter", "Answered requests by status and error code.")
    for (status, code), count in state.counters.refused.items():
        yield _sample("requests_total", {"status": str(status), "code": code}, count)
    for group in groups:
        for (status, code), count in group.results.items():
            labels = {**_labels(group), "status": str(status), "code": code}
            yield _sample("requests_total", labels, count)
    yield from _family("in_flight_requests", "gauge", "Requests at the copies now.")
    for target in state.table.targets.values():
        labels = {**_labels(target.group), "copy": target.copy_id}
        yield _sample("in_flight_requests", labels, target.meter.in_flight)
    yield from _family("queued_requests", "gauge", "Requests that wait for a slot now.")
    for group in groups:
        yield _sample("queued_requests", _labels(group), len(group.waiting))
    yield from _family("request_seconds", "histogram", "From receipt to the last byte.")
    for group in groups:
        yield from _histogram(group)
    yield from _family("client_connections", "gauge", "Open connections of clients.")
    yield _sample("client_connections", {}, len(state.clients.open))
    yield from _family("refused_connections_total", "counter", "Connections beyond the limit.")
    yield _sample("refused_connections_total", {}, state.clients.refused)
    yield from _family("evicted_connections_total", "counter", "Idle ones that made room.")
    yield _sample("evicted_connections_total", {}, state.clients.evicted)
    yield from _family("request_body_bytes", "gauge", "Request bodies in memory.")
    yield _sample("request_body_bytes", {}, state.bodies.used_bytes)
    yield from _family("cancelled_requests_total", "counter", "Clients that went away early.")
    yield _sample("cancelled_requests_total", {}, state.counters.cancelled)
    yield from _family("routes_version", "gauge", "Version of the routes in force.")
    yield _sample("routes_version", {}, state.table.version)


def _histogram(group: Group) -> Iterable[str]:
    labels = _labels(group)
    buckets = group.latency.cumulative()
    for bound, count in buckets:
        yield _sample("request_seconds_bucket", {**labels, "le": bound}, count)
    yield _sample("request_seconds_sum", labels, group.latency.sum_s)
    yield _sample("request_seconds_count", labels, buckets[-1][1])


def _labels(group: Group) -> dict[str, str]:
    labels = {"account": group.account, "endpoint": group.endpoint, "variant": group.variant}
    return {**labels, "component": group.component} if group.component else labels


def _family(name: str, kind: str, description: str) -> tuple[str, str]:
    name = f"zeropull_gateway_{name}"
    return f"# HELP {name} {description}", f"# TYPE {name} {kind}"


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"zeropull_gateway_{name}{{{inner}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
