"""The nodes' and the gateway's side of the private API (`zeropull.controlapi.messages`).

One call is one attempt: retries and their backoff belong to the caller, who knows what else to do
in the meantime.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec

from zeropull.controlapi.messages import (
    LONG_POLL_S,
    GatewayReport,
    NodeAssignment,
    NodeReport,
    Routes,
)
from zeropull.errors import AccessDenied, Unavailable

REPORT_TIMEOUT_S = 10.0
_LONG_POLL_MARGIN_S = 10.0  # above the server's own limit, for its answer to arrive

Message = TypeVar("Message", NodeAssignment, Routes)


class ControlClient:
    """Speaks for one node (`instance_id` and its token) or for the gateway (its token).

    An async context manager. Every call raises Unavailable when the control plane does not answer
    or answers something else than its API, and AccessDenied when it refuses the token.
    """

    def __init__(self, socket: Path, token: str, *, instance_id: str = "") -> None:
        self._socket = socket
        self._token = token
        self._instance_id = instance_id
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            base_url="http://control",
            connector=aiohttp.UnixConnector(str(self._socket)),
            headers={"Authorization": f"Bearer {self._token}"},
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def watch_assignment(self, since: int, epoch: str = "") -> NodeAssignment | None:
        """The node's assignment above version `since`, or of another epoch; None when a long poll
        passed without one."""
        path = f"/v1/nodes/{self._instance_id}/assignment?since={since}&epoch={epoch}"
        return await self._watch(path, NodeAssignment)

    async def report(self, report: NodeReport) -> None:
        """Deliver the node's whole state."""
        await self._post(f"/v1/nodes/{self._instance_id}/report", report)

    async def watch_routes(self, since: int, epoch: str = "") -> Routes | None:
        """The routes above version `since`, or of another epoch; None when a long poll passed
        without any."""
        return await self._watch(f"/v1/gateway/routes?since={since}&epoch={epoch}", Routes)

    async def report_gateway(self, report: GatewayReport) -> None:
        """Deliver the gateway's state and readings."""
        await self._post("/v1/gateway/report", report)

    async def _watch(self, path: str, kind: type[Message]) -> Message | None:
        status, body = await self._call("GET", path, None, LONG_POLL_S + _LONG_POLL_MARGIN_S)
        if status == 204:
            return None
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise Unavailable(
                f"the control plane's answer to {path} is not ours: {error}"
            ) from error

    async def _post(self, path: str, message: NodeReport | GatewayReport) -> None:
        await self._call("POST", path, msgspec.json.encode(message), REPORT_TIMEOUT_S)

    async def _call(
        self, method: str, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes]:
        if self._session is None:
            raise RuntimeError("ControlClient is used outside its context")
        try:
            async with self._session.request(
                method, path, data=body, timeout=aiohttp.ClientTimeout(total=timeout_s)
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                f"the control plane does not answer at {self._socket}: {error!r}"
            ) from error
        if answer.status in (401, 403):
            raise AccessDenied(f"the control plane refuses {method} {path}: {content[:200]!r}")
        if answer.status not in (200, 204):
            raise Unavailable(
                f"the control plane answers {method} {path} with {answer.status}: {content[:200]!r}"
            )
        return answer.status, content
