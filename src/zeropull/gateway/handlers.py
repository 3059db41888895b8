"""Who answers a request: a model, the gateway itself, or the control plane."""

from __future__ import annotations

from zeropull.gateway.connection import ClientConnection
from zeropull.gateway.invocation import Invocation
from zeropull.gateway.own_pages import PAGES, OwnPage
from zeropull.gateway.relay import Relay
from zeropull.gateway.request import Handler, Request
from zeropull.gateway.state import GatewayState


class RequestHandlers:
    """Makes the handler of each request of one gateway."""

    __slots__ = ("_state",)

    def __init__(self, state: GatewayState) -> None:
        self._state = state

    def handler_for(self, client: ClientConnection, request: Request) -> Handler:
        if request.is_invocation:
            return Invocation(self._state, client, request, request.received_s)
        if request.path in PAGES:
            return OwnPage(self._state, client, request)
        return Relay(self._state, client, request)

    def known_handler_for(self, client: ClientConnection, request: Request) -> Invocation:
        return Invocation(self._state, client, request, self._state.monotonic())
