"""One invocation, from its head to a slot of a copy.

InvokeEndpoint and InvokeEndpointWithResponseStream of the SageMaker Runtime API. There is no task
and no future per request: the client's and the container's connection call it as things happen.
What follows the slot is `zeropull.gateway.forwarding`.
"""

from __future__ import annotations

import hashlib
from enum import Enum

from zeropull.gateway import refusals
from zeropull.gateway.admission import admit, admit_signed, is_settled, refuse_by_head
from zeropull.gateway.body import RequestBody
from zeropull.gateway.connection import ClientConnection
from zeropull.gateway.forwarding import Forwarding
from zeropull.gateway.invocation_head import InvocationHead
from zeropull.gateway.refusals import Refusal
from zeropull.gateway.request import Request
from zeropull.gateway.routing import Group, Target
from zeropull.gateway.state import GatewayState
from zeropull.gateway.whole_request import KnownHead


class Stage(Enum):
    READING = "reading"  # the body is coming in
    WAITING = "waiting"  # for a slot
    FORWARDED = "forwarded"
    ENDED = "ended"


# Every access of a member through its class costs a look-up in Python 3.11.
READING, WAITING, FORWARDED, ENDED = Stage


class Invocation:
    """Handler of one request under /endpoints/, and what waits for a slot.

    Times in seconds are monotonic, but for those that the meters get. Every path ends in exactly
    one of `_refuse`, `on_client_gone` and the end of its forwarding.
    """

    __slots__ = (
        "_client",
        "_forwarding",
        "_head",
        "_lines",
        "_state",
        "body",
        "group",
        "held",
        "queued_s",
        "received_s",
        "request",
        "stage",
        "streamed",
        "waited_s",
    )

    def __init__(
        self, state: GatewayState, client: ClientConnection, request: Request, received_s: float
    ) -> None:
        self._state = state
        self._client = client
        self._forwarding: Forwarding | None = None
        self._head: InvocationHead
        self._lines: bytes | None = None  # that the container gets, where they are known already
        self.request = request
        self.received_s = received_s
        self.stage = READING
        self.group: Group | None = None
        self.held = False
        self.queued_s = 0.0
        self.waited_s = 0.0
        self.streamed = False
        self.body = RequestBody(state.bodies, client.address)

    # The client's connection calls these.

    def start(self) -> None:
        request = self.request
        self._head = head = InvocationHead(request.headers)
        refusal = refuse_by_head(self._state, request) or self.body.refusal(head.length_bytes)
        if refusal is not None:
            self._refuse(refusal)
            return
        self.body.watch(self._refuse)
        if head.expects_continue and not request.complete:
            self._client.continue_body()

    def start_whole(self, known: KnownHead, data: bytes, signature: bytes) -> None:
        """As `start`, `on_chunk` and `on_complete`, for a request whose head was known."""
        self._head = known.head
        self._lines = known.lines
        try:
            self.body.add(data)
            if known.signed is not None:
                body_sha256 = hashlib.sha256(data).hexdigest()
                group, self.streamed = admit_signed(
                    self._state, known, known.signed, signature, body_sha256
                )
            elif known.group is not None:
                group, self.streamed = known.group, known.streamed
            else:
                group, self.streamed = self._admit()
        except Refusal as refusal:
            self._refuse(refusal)
            return
        if known.group is None and is_settled(known.head, group):
            known.group, known.streamed = group, self.streamed
        self._take_slot(group)

    def on_chunk(self, data: bytes) -> None:
        if self.stage is not READING:
            return
        try:
            if self._state.signed:
                self.body.add_hashed(data)
            else:
                self.body.add(data)
        except Refusal as refusal:
            self._refuse(refusal)

    def on_complete(self) -> None:
        if self.stage is not READING:
            return
        self.body.finish()
        try:
            group, self.streamed = self._admit()
        except Refusal as refusal:
            self._refuse(refusal)
            return
        self._take_slot(group)

    def on_client_gone(self) -> None:
        """Nobody waits for the answer any more."""
        if self.stage is ENDED:
            return
        if self.stage is FORWARDED:
            assert self._forwarding is not None
            self._forwarding.on_client_gone()
            return
        if self.stage is WAITING:
            self._leave_queue()
        self.stage = ENDED
        self.body.finish()
        self.body.release()
        self._state.counters.count_cancelled(self.group)

    def on_client_writable(self, writable: bool) -> None:
        if self._forwarding is not None:
            self._forwarding.on_client_writable(writable)

    # To a slot

    def _admit(self) -> tuple[Group, bool]:
        return admit(self._state, self.request, self._head, self.body, self.received_s)

    def _take_slot(self, group: Group) -> None:
        self.group = group
        now_s = self._state.monotonic()
        session_id = self._head.session_id
        target = group.of_session(session_id) if session_id is not None else None
        if target is None:
            target = None if group.waiting else group.choose(now_s)
        if target is not None:
            self.begin(target, now_s)
        else:
            self._wait(group)

    def begin(self, target: Target, now_s: float) -> None:
        if self.stage is WAITING:
            self._leave_queue()
        self.stage = FORWARDED
        forwarding = self._forwarding
        if forwarding is None:
            assert self.group is not None
            self._forwarding = forwarding = Forwarding(self._state, self._client, self, self.group)
        forwarding.begin(target, now_s)

    def _wait(self, group: Group) -> None:
        state = self._state
        if not group.targets:
            if not group.hold:
                group.meter.refuse_no_capacity(state.clock())
                self._refuse(
                    refusals.component_without_copies()
                    if group.is_at_zero
                    else refusals.no_healthy_component(group.component, group.endpoint)
                    if group.component
                    else refusals.no_healthy_copy(group.variant, group.endpoint)
                )
                return
            self.held = True
            if not group.waiting:
                state.first_held()
        if len(group.waiting) >= group.queue_limit:
            self._refuse(refusals.queue_full(group.name, group.queue_limit))
            return
        self._enqueue(group)

    def wait_first(self) -> None:
        """Its copy refused it, and the others are busy: to where it would stand in the queue."""
        assert self.group is not None
        self._enqueue(self.group)
        self.group.waiting.move_to_end(self, last=False)

    def _enqueue(self, group: Group) -> None:
        self.stage = WAITING
        self.queued_s = self._state.monotonic()
        group.meter.begin(self._state.clock())
        group.waiting[self] = None

    def _leave_queue(self) -> None:
        group = self.group
        assert group is not None
        del group.waiting[self]
        group.meter.end(self._state.clock())
        self.waited_s += self._state.monotonic() - self.queued_s

    def give_up_waiting(self) -> None:
        waited_s = self._state.monotonic() - self.queued_s
        if not self.held:
            self._refuse(
                refusals.service_unavailable(f"No slot became free within {waited_s:.0f} s.")
            )
            return
        assert self.group is not None
        self.group.meter.refuse_no_capacity(self._state.clock())
        self._refuse(refusals.still_starting(waited_s))

    def endpoint_gone(self) -> None:
        assert self.group is not None
        self._refuse(refusals.endpoint_not_found(self.group.endpoint, self.group.account))

    # What the forwarding asks for

    def container_lines(self) -> bytes:
        """What of the head the container gets."""
        return self._lines or self._head.container_lines(self.body.size_bytes)

    def cold_start_line(self) -> bytes:
        """How long a request was held for the first copy; b"" when it was not."""
        return b"x-zeropull-cold-start: %.3f\r\n" % self.waited_s if self.held else b""

    def ended(self) -> None:
        # Each refers to the other: left so, only the garbage collector would find them.
        self._forwarding = None
        self.stage = ENDED
        self.body.release()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer without any container's doing."""
        if self.stage is WAITING:
            self._leave_queue()
        self.stage = ENDED
        self.body.finish()
        self.body.release()
        self._state.counters.count_refusal(self.group, refusal)
        self._client.refuse(self.request, refusal, self.cold_start_line())
        self._client.finished()
