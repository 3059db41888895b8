"""What all parts of one gateway share. It knows none of the handlers that use it."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator

from zeropull.awsprotocol.sigv4_claims import RememberedClaims
from zeropull.gateway.backlog import ReadingsBacklog
from zeropull.gateway.body import BodyMemory
from zeropull.gateway.clients import Clients
from zeropull.gateway.counters import Counters
from zeropull.gateway.deadlines import Deadlines
from zeropull.gateway.known_answer import KnownAnswerHeads
from zeropull.gateway.pools import Pools
from zeropull.gateway.routing import RoutingTable
from zeropull.gateway.signed_request import SignedRequests
from zeropull.gateway.whole_request import KnownRequests, WholeRequests
from zeropull.resources.settings import GatewaySettings

MAX_RELAYED_BODY_BYTES = 4 << 20  # the API takes no larger ones


class GatewayState:
    """Settings, clocks, routes, connections, deadlines and counters of one gateway."""

    __slots__ = (
        "account",
        "api_socket",
        "bodies",
        "claims",
        "clients",
        "clock",
        "counters",
        "deadlines",
        "draining",
        "first_held",
        "known_requests",
        "monotonic",
        "next_request_id",
        "now_s",
        "pools",
        "readings",
        "relayed_bodies",
        "settings",
        "signed",
        "stopping",
        "table",
        "tasks",
    )

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        api_socket: str,
        account: str = "000000000000",
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.api_socket = api_socket
        self.account = account  # named in answers when no key says whose it is
        self.clock = clock  # for what is reported and for signatures
        self.monotonic = monotonic  # for everything that takes or lasts
        self.now_s = monotonic()  # as of the last sweep: good enough for time-outs
        self.signed = settings.verify_signatures
        self.claims = RememberedClaims()
        self.draining = False  # every answer is the last one on its connection
        self.stopping = False  # connections end where they stand between two requests
        self.tasks = asyncio.TaskGroup()  # the server enters it
        self.readings = ReadingsBacklog()
        self.table = RoutingTable(self.readings.add)
        self.known_requests: KnownRequests = SignedRequests() if self.signed else WholeRequests()
        self.pools = Pools(
            settings,
            KnownAnswerHeads(),
            api_socket=api_socket,
            tasks=self.tasks,
            monotonic=monotonic,
        )
        self.deadlines = Deadlines(settings)
        self.counters = Counters()
        self.bodies = BodyMemory(
            max_body_bytes=settings.max_body_bytes,
            max_bytes=settings.max_buffered_bytes,
            monotonic=monotonic,
        )
        self.relayed_bodies = BodyMemory(
            max_body_bytes=MAX_RELAYED_BODY_BYTES,
            max_bytes=settings.max_relayed_bytes,
            monotonic=monotonic,
        )
        self.clients = Clients(settings)
        # Called when a request is held where no copy is: it cannot wait for the next report.
        self.first_held: Callable[[], None] = lambda: None
        self.next_request_id: Callable[[], bytes] = _request_ids().__next__


def _request_ids() -> Iterator[bytes]:
    """UUIDs that count up. Formatting a number costs more than putting its end behind it."""
    start = b"%08x-%04x-4%03x-8%03x-" % tuple(random.getrandbits(bits) for bits in (32, 16, 12, 12))
    ends = [b"%03x" % number for number in range(4096)]
    for count in itertools.count():
        middle = b"%b%09x" % (start, count)
        for end in ends:
            yield middle + end
