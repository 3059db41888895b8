"""Which copy takes a request: variants by weight, copies by strategy, one queue for what waits.

Nothing here does I/O. Requests are bound late: whoever cannot start waits in the group's one queue
and takes the first slot that becomes free anywhere, so that a new copy helps at once.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Protocol

from zeropull.controlapi import messages
from zeropull.controlapi.messages import AccessKey, CopyReading, EndpointRoute, Routes, VariantRoute
from zeropull.gateway import refusals
from zeropull.gateway.concurrency import ConcurrencyMeter, MeterLabels
from zeropull.gateway.latency import LatencyHistogram
from zeropull.gateway.results import Result
from zeropull.gateway.sessions import Sessions
from zeropull.gateway.upstream import UpstreamConnection

SERVING = frozenset({"InService", "Updating", "SystemUpdating", "RollingBack"}) | {
    "UpdateRollbackFailed"
}
EJECTION_S = 0.25  # first pause of a copy that refuses connections; doubles up to EJECTION_MAX_S
EJECTION_MAX_S = 5.0
RAMP_START = 8  # held requests that a copy without a limit gets at once; see Group.ramp

_UNLIMITED = 1 << 60


class Waiter(Protocol):
    """A request without a slot, in its group's queue.

    The queue's owner calls exactly one of the three, once.
    """

    held: bool  # there was no copy at all when it came
    queued_s: float  # when it began to wait, monotonic

    def begin(self, target: Target, now_s: float) -> None:
        """Take a slot of this copy."""

    def give_up_waiting(self) -> None:
        """It has waited for its whole time."""

    def endpoint_gone(self) -> None:
        """The endpoint was deleted."""


class Connecting(Protocol):
    """A request with a slot, without a connection yet."""

    def connected(self, connection: UpstreamConnection) -> bool:
        """A connection is there, new or freed by another; False when it is not needed any more."""

    def connect_failed(self, *, refused: bool) -> None:
        """There is none; `refused` tells a refusal from a time-out."""


class Target:
    """One copy and what is going on with it."""

    __slots__ = (
        "connecting",
        "copy_id",
        "draining",
        "ejected_until_s",
        "failures",
        "first_response_s",
        "gone",
        "group",
        "host",
        "idle",
        "limit",
        "meter",
        "port",
        "request_start",
        "routed_at_s",
        "window",
    )

    def __init__(self, spec: messages.Target, group: Group, meter: ConcurrencyMeter) -> None:
        self.copy_id = spec.copy_id
        self.group = group
        self.meter = meter
        self.host, self.port = spec.host, spec.port
        self.idle: list[UpstreamConnection] = []  # to this address
        self.connecting: dict[Connecting, None] = {}  # without a connection yet, oldest first
        self.ejected_until_s = 0.0
        self.failures = 0
        self.routed_at_s = 0.0
        self.first_response_s = 0.0
        self.window = _UNLIMITED
        self.gone = False
        self.update(spec)

    def update(self, spec: messages.Target) -> None:
        if (spec.host, spec.port) != (self.host, self.port):
            # Its node has another network: at the address before, nobody even refuses.
            for connection in self.idle:
                connection.transport.abort()
            self.idle = []
        self.host, self.port = spec.host, spec.port
        self.draining = spec.draining
        self.limit = spec.max_concurrency or _UNLIMITED
        host = f"[{spec.host}]" if ":" in spec.host else spec.host
        self.request_start = f"POST /invocations HTTP/1.1\r\nHost: {host}:{spec.port}\r\n".encode()

    def eject(self, now_s: float) -> float:
        """It refused a connection: out of rotation for a moment; returns for how long."""
        pause_s = min(EJECTION_MAX_S, EJECTION_S * 2.0 ** min(self.failures, 10))
        self.failures += 1
        self.ejected_until_s = now_s + pause_s
        return pause_s


class Group:
    """The copies of one variant or one component, and the requests that wait for them."""

    __slots__ = (
        "account",
        "component",
        "container",
        "endpoint",
        "hold",
        "is_at_zero",
        "is_only",
        "latency",
        "least_outstanding",
        "meter",
        "name",
        "queue_limit",
        "results",
        "sessions",
        "targets",
        "variant",
        "variant_header",
        "waiting",
    )

    def __init__(
        self, endpoint: EndpointRoute, variant: VariantRoute, component: str | None
    ) -> None:
        self.account, self.endpoint, self.variant = endpoint.account, endpoint.name, variant.name
        self.component = component
        self.name = f"{endpoint.name}/{variant.name}" + (f"/{component}" if component else "")
        self.targets: list[Target] = []  # in rotation: neither draining nor gone
        self.waiting: OrderedDict[Waiter, None] = OrderedDict()  # oldest first
        self.results: Counter[Result] = Counter()
        self.sessions = Sessions()
        self.latency = LatencyHistogram()
        self.meter: ConcurrencyMeter
        self.update(endpoint, variant)

    def update(self, endpoint: EndpointRoute, variant: VariantRoute) -> None:
        self.is_at_zero = self.component in endpoint.components_at_zero
        self.hold = endpoint.hold_from_zero or self.component in endpoint.held_components
        self.least_outstanding = variant.strategy != "RANDOM"
        self.is_only = len(endpoint.variants) == 1  # there is no other variant to choose
        self.queue_limit = variant.queue_limit
        self.container = variant.container_name
        self.variant_header = b"x-Amzn-Invoked-Production-Variant: %b\r\n" % variant.name.encode()

    def choose(self, now_s: float, tried: tuple[Target, ...] = ()) -> Target | None:
        """The copy with a free slot that the strategy prefers, None when there is none.

        A copy that refuses connections is passed over for a moment, unless all of them do.
        """
        targets = self.targets
        if len(targets) == 1:
            only = targets[0]
            busy = only.meter.in_flight
            return only if busy < only.limit and busy < only.window and only not in tried else None
        free = [
            target
            for target in targets
            if target.meter.in_flight < target.limit
            and target.meter.in_flight < target.window
            and target not in tried
        ]
        if not free:
            return None
        candidates = [target for target in free if target.ejected_until_s <= now_s] or free
        if self.least_outstanding:
            least = min(target.meter.in_flight for target in candidates)
            candidates = [target for target in candidates if target.meter.in_flight == least]
        return candidates[int(random.random() * len(candidates))]  # noqa: S311 - no secret

    def of_session(self, session_id: str) -> Target | None:
        """The copy that holds the session's state, also when it has no free slot: no other one can
        answer. None when it is gone, or not known, which another gateway's session may be."""
        copy_id = self.sessions.copy_of(session_id)
        return next((target for target in self.targets if target.copy_id == copy_id), None)

    def serve_waiting(self, now_s: float) -> None:
        """The oldest waiting requests take what is free."""
        while self.waiting:
            target = self.choose(now_s)
            if target is None:
                return
            next(iter(self.waiting)).begin(target, now_s)

    def widen(self) -> None:
        """One step of the ramp of copies that started with held requests waiting.

        A copy without a limit would otherwise get all held requests in the same millisecond. It
        gets RAMP_START of them and half as many more with every step, until none is waiting.
        """
        for target in self.targets:
            if target.window != _UNLIMITED:
                target.window = target.window * 3 // 2 if self.waiting else _UNLIMITED


class Endpoint:
    """One endpoint with its groups, as invocations look it up."""

    __slots__ = ("components", "groups", "route")

    def __init__(self, route: EndpointRoute, groups: dict[tuple[str, str | None], Group]) -> None:
        self.route = route
        self.groups = groups
        self.components = frozenset(route.components)

    def group(self, variant: str | None, component: str | None) -> Group:
        """The group that takes a request with these headers.

        Raises:
            Refusal: as AWS answers.
        """
        route = self.route
        if component is None and route.component_based:
            raise refusals.component_required()
        if component is not None:
            if not route.component_based:
                raise refusals.component_not_allowed()
            if component not in self.components:
                raise refusals.validation_error(
                    f'Inference Component "{component}" of endpoint {route.name} not found.'
                )
        if variant is not None:
            found = self.groups.get((variant, component))
            if found is None:
                raise refusals.validation_error(
                    f"Variant {variant} not found for endpoint {route.name}."
                )
            return found
        variants = route.variants
        if len(variants) == 1:
            return self.groups[variants[0].name, component]
        return self._weighted(component)

    def _weighted(self, component: str | None) -> Group:
        pairs = [
            (variant.weight, self.groups[variant.name, component])
            for variant in self.route.variants
        ]
        if not pairs:
            raise refusals.service_unavailable(f"Endpoint {self.route.name} has no variant.")
        # A variant without copies takes no share while another can serve.
        served = [pair for pair in pairs if pair[1].targets] or pairs
        total = sum(weight for weight, _ in served)
        if total <= 0:
            return served[int(random.random() * len(served))][1]  # noqa: S311 - no secret
        point = random.random() * total  # noqa: S311 - no secret
        for weight, group in served:
            point -= weight
            if point < 0:
                return group
        return served[-1][1]


class RoutingTable:
    """The routes in force, with the state that outlives a change of them."""

    def __init__(self, emit: Callable[[CopyReading], None]) -> None:
        self._emit = emit
        self.version = 0
        self.epoch = ""
        self.region = "us-east-1"
        self.keys: dict[str, AccessKey] = {}
        self.endpoints: dict[tuple[str, str], Endpoint] = {}  # (account, name)
        self._by_name: dict[str, Endpoint] = {}  # for requests that no key gives an account
        self.groups: dict[tuple[str, str, str, str | None], Group] = {}
        self.targets: dict[str, Target] = {}  # by copy_id; those that still finish included
        self.removed: list[Group] = []  # groups whose waiting requests must be refused

    def find(self, name: str, account: str | None) -> Endpoint | None:
        """An endpoint that serves; `account` None looks in every account."""
        if account is not None:
            found = self.endpoints.get((account, name))
        else:
            found = self._by_name.get(name)
        return found if found is not None and found.route.status in SERVING else None

    def apply(self, routes: Routes, now_s: float) -> None:
        """Take over a newer version. State of copies and queues that stay is kept."""
        self.version, self.epoch, self.region = routes.version, routes.epoch, routes.region
        self.keys = {key.access_key_id: key for key in routes.keys}
        old_groups, self.groups, self.endpoints = self.groups, {}, {}
        seen: set[str] = set()
        for route in routes.endpoints:
            groups: dict[tuple[str, str | None], Group] = {}
            for variant in route.variants:
                names: tuple[str | None, ...] = route.components if route.component_based else ()
                for component in names or (None,):
                    key = (route.account, route.name, variant.name, component)
                    group = old_groups.pop(key, None) or self._new_group(
                        route, variant, component, now_s
                    )
                    group.update(route, variant)
                    self._apply_targets(group, variant, component, now_s, seen)
                    self.groups[key] = groups[variant.name, component] = group
            self.endpoints[route.account, route.name] = Endpoint(route, groups)
        self._by_name = {key[1]: endpoint for key, endpoint in self.endpoints.items()}
        for target in self.targets.values():
            if target.copy_id not in seen:
                target.draining = target.gone = True
        for group in old_groups.values():
            group.targets = []
            self.removed.append(group)

    def forget_finished(self, now_s: float) -> list[Target]:
        """Copies that left the routes and have finished; their last readings are out now."""
        finished = [t for t in self.targets.values() if t.gone and not t.meter.in_flight]
        for target in finished:
            target.meter.roll(float(int(now_s) + 1))
            del self.targets[target.copy_id]
        return finished

    def _new_group(
        self, route: EndpointRoute, variant: VariantRoute, component: str | None, now_s: float
    ) -> Group:
        group = Group(route, variant, component)
        labels = MeterLabels(route.account, route.name, variant.name, component=component)
        group.meter = ConcurrencyMeter(labels, now_s, self._emit)
        return group

    def _apply_targets(
        self,
        group: Group,
        variant: VariantRoute,
        component: str | None,
        now_s: float,
        seen: set[str],
    ) -> None:
        was_empty = not group.targets
        rotation: list[Target] = []
        for spec in variant.targets:
            if spec.component != component:
                continue
            seen.add(spec.copy_id)
            target = self.targets.get(spec.copy_id)
            if target is None:
                labels = MeterLabels(
                    group.account,
                    group.endpoint,
                    group.variant,
                    spec.copy_id,
                    spec.instance_id,
                    component,
                )
                target = Target(spec, group, ConcurrencyMeter(labels, now_s, self._emit))
                self.targets[spec.copy_id] = target
            target.group, target.gone = group, False
            target.update(spec)
            if target.draining:
                continue
            if not target.routed_at_s:
                target.routed_at_s = now_s
                if was_empty and group.waiting:
                    target.window = RAMP_START
            rotation.append(target)
        group.targets = rotation
